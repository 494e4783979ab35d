"""The kernel fingerprint: the same for the same computation, another wherever a bit of it may be another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from swarm.base.errors import ModelError
from swarm.model import attend, fingerprint
from swarm.model.files.checkpoint import open_model
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.fingerprint import SeededCheckpoint, fingerprint_of, kinds_of, parts_of
from swarm.model.own_kernels import KernelsHere
from swarm.model.quant.native import library
from tests.models.configs import tiny_config as models_config
from tests.models.sweep import _random_model
from tests.swarm.model.tiny import CPU, random_model, tiny_config

SUPPORTED = ("llama-tied", "qwen2", "gemma3", "gpt2", "qwen3-moe")


def saved(family: str, folder: Path, seed: int = 0) -> Any:
    random_model(tiny_config(family), seed).save_pretrained(folder)
    return open_model(str(folder), ModelStore(folder / "store"))


def digest(checkpoint: Any, dtype: torch.dtype = torch.float32, weights: str = "expanded") -> str:
    return fingerprint_of(checkpoint.manifest, checkpoint.config, CPU, dtype, weights).digest


@pytest.mark.parametrize("family", SUPPORTED)
def test_it_follows_kernels_and_shapes_and_not_the_weights(family: str, tmp_path: Path) -> None:
    one, other = (saved(family, tmp_path / str(seed), seed) for seed in (0, 1))
    assert one.manifest.digest != other.manifest.digest
    for dtype in (torch.float32, torch.bfloat16):
        assert digest(one, dtype) == digest(one, dtype) == digest(other, dtype)
    assert digest(one) != digest(one, torch.bfloat16)


@pytest.mark.parametrize("family", ["gemma3n_text", "deepseek_v4"])
def test_layers_that_stay_together_and_experts_by_token_are_measured(family: str, tmp_path: Path) -> None:
    _random_model(models_config(family)).save_pretrained(tmp_path)
    checkpoint = open_model(str(tmp_path), ModelStore(tmp_path / "store"))
    parts = parts_of(SeededCheckpoint(checkpoint.manifest, checkpoint.config))
    assert all(cut not in checkpoint.manifest.ties.forbidden for part in parts for cut in part)
    found = fingerprint_of(checkpoint.manifest, checkpoint.config, CPU, torch.bfloat16)
    assert found.why_not is None and len(found.digest) == 64


def test_nobody_needs_a_weight_to_measure(tmp_path: Path) -> None:
    checkpoint = saved("llama", tmp_path)
    kernels = KernelsHere(checkpoint.manifest)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    found = kernels.find(digest(checkpoint, torch.bfloat16))
    assert found is not None and (found.dtype, found.weights) == (torch.bfloat16, "expanded")
    assert kernels.find("ab" * 32) is None and found.digest in kernels.all()


def _nudged(position: int) -> Any:
    """Attention that is off by one bit of one number, wherever a row of this place passes."""
    real = attend.attend

    def nudged(*about: Any, **more: Any) -> tuple[torch.Tensor, None]:
        out = real(*about, **more)[0].contiguous().clone()
        flat = out.view(-1)
        if position < len(flat):
            flat[position : position + 1].view(torch.int32).bitwise_xor_(1 << 12)
        return out, None

    return nudged


def test_one_bit_of_attention_anywhere_is_another_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = saved("llama", tmp_path)
    seen = {digest(checkpoint)}
    for position in (0, 17, 40):
        with monkeypatch.context() as patch:
            patch.setattr(attend, "attend", _nudged(position))
            seen.add(digest(checkpoint))
    assert len(seen) == 4 and digest(checkpoint) in seen


def test_what_a_block_promises_of_its_rows_is_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = saved("llama", tmp_path)
    before = fingerprint_of(checkpoint.manifest, checkpoint.config, CPU, torch.float32)
    monkeypatch.setattr(fingerprint, "why_not", lambda block: "a reason" if before.row_invariant else None)
    after = fingerprint_of(checkpoint.manifest, checkpoint.config, CPU, torch.float32)
    assert after.row_invariant != before.row_invariant and after.digest != before.digest


def test_each_kind_of_layer_is_measured_once(tmp_path: Path) -> None:
    mixed = saved("qwen3-moe", tmp_path)  # every second layer is dense
    assert kinds_of(SeededCheckpoint(mixed.manifest, mixed.config)) == [2, 5]
    plain = saved("llama", tmp_path / "plain")
    assert kinds_of(SeededCheckpoint(plain.manifest, plain.config)) == [5]


def test_layers_too_large_to_have_beside_others_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = saved("llama", tmp_path)
    monkeypatch.setattr(fingerprint, "MOST_BYTES", 1000)
    with pytest.raises(ModelError, match="too much to be measured beside"):
        digest(checkpoint)
    assert KernelsHere(checkpoint.manifest).all() == frozenset()


@pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")
@pytest.mark.timeout(120)
def test_weights_as_stored_have_one_of_their_own(tmp_path: Path) -> None:
    checkpoint = ModelStore(tmp_path / "models").open(DEFAULT_MODEL, (0, 1))
    found = {way: digest(checkpoint, torch.bfloat16, way) for way in ("expanded", "auto")}
    assert found["expanded"] != found["auto"] == digest(checkpoint, torch.bfloat16, "auto")


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_every_class_that_can_be_cut_has_one(tmp_path: Path) -> None:
    from tests.models.configs import all_types
    from tests.models.configs import tiny_config as by_rule

    failed = {}
    for case in all_types():
        folder = tmp_path / case
        try:
            _random_model(by_rule(case)).save_pretrained(folder)
            checkpoint = open_model(str(folder), ModelStore(folder / "store"))
            from swarm.model.block import load_block

            load_block(checkpoint, 0, checkpoint.manifest.n_layers, CPU, torch.float32)
        except Exception:
            continue  # refused, which tests/models looks into
        try:
            assert digest(checkpoint) == digest(checkpoint)
        except ModelError as error:
            failed[case] = str(error)
    assert not failed
