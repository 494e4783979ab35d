"""Checkpoints with a multi-token prediction head: its tensors are no layer's, and who needs them has them."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from swarm.base.errors import ModelError
from swarm.discovery.model_shape import model_shape
from swarm.model.block import load_block
from swarm.model.files.checkpoint import open_model
from swarm.model.files.manifest import Manifest, TensorEntry, canonical_json
from swarm.model.files.store import ModelStore
from swarm.model.mtp import load_mtp
from tests.swarm.model.mtp_models import save_with_head
from tests.swarm.model.tiny import CPU, logits_of, plain

TEXT = [3, 14, 15, 92, 65]
CONFIG = {"model_type": "qwen3_next", "num_hidden_layers": 2, "hidden_size": 4, "vocab_size": 8}


def entry(name: str, *shape: int) -> TensorEntry:
    return TensorEntry(name, shape or (4, 4), "F32", 64, hashlib.sha256(name.encode()).hexdigest())


NAMES = ("model.embed_tokens.weight", "model.layers.0.a.weight", "model.layers.1.a.weight", "lm_head.weight")
APART = ("mtp.fc.weight", "mtp.pre_fc_norm_embedding.weight", "mtp.pre_fc_norm_hidden.weight", "mtp.norm.weight")
ENTRIES = tuple(entry(name) for name in (*NAMES, "model.norm.weight", *APART, "mtp.layers.0.a.weight"))


@pytest.mark.parametrize("kind", ["deepseek_v3", "glm4_moe_lite", "qwen3_next"])
def test_the_model_loads_beside_its_head_and_says_the_same(kind: str, tmp_path: Path) -> None:
    model = save_with_head(kind, tmp_path / "m")
    checkpoint = open_model(str(tmp_path / "m"), ModelStore(tmp_path / "s"))
    torch.testing.assert_close(logits_of(checkpoint, TEXT, (0, 3, 6)), plain(model, TEXT), rtol=0, atol=2e-4)


def test_a_heads_tensors_are_no_layers() -> None:
    manifest = Manifest("m", CONFIG, ENTRIES)
    manifest.check_layers()
    of_layers = {t.name for t in manifest.layer_tensors(0, 2)}
    assert of_layers == {*NAMES, "model.norm.weight"}
    assert {t.name for t in manifest.mtp_tensors} == {*APART, "mtp.layers.0.a.weight"}
    assert manifest.mtp is not None and manifest.mtp.layer["mtp.layers.0.a.weight"] == "model.layers.2.a.weight"
    read = {t.name for t in manifest.stage_tensors(1, 2)}  # a tail looks up what it drew
    assert {"mtp.fc.weight", "model.embed_tokens.weight", "lm_head.weight"} <= read
    assert {t.name for t in manifest.stage_tensors(0, 1)} == {"model.embed_tokens.weight", "model.layers.0.a.weight"}


def test_what_stages_sign_for_is_what_it_was() -> None:
    """Receipts from before heads were known of name weights by these digests."""
    manifest = Manifest("m", CONFIG, ENTRIES)
    entries = {t.name: asdict(t) for t in ENTRIES}
    for span, names in (
        ((0, 1), ("model.embed_tokens.weight", "model.layers.0.a.weight", "mtp.layers.0.a.weight")),
        ((1, 2), ("lm_head.weight", "model.layers.1.a.weight", "model.norm.weight", *APART)),
    ):
        body = {"layers": list(span), "tensors": [entries[name] for name in sorted(names)]}
        assert manifest.weights_digest(*span) == hashlib.sha256(canonical_json(body)).hexdigest()


def test_layers_behind_the_last_are_a_heads_only_where_the_config_says_so() -> None:
    behind = (*ENTRIES[:5], entry("model.layers.2.a.weight"))
    with pytest.raises(ModelError, match="says 2 layers, its weights hold 3"):
        Manifest("m", CONFIG, behind).check_layers()
    stated = Manifest("m", {**CONFIG, "num_nextn_predict_layers": 1}, behind)
    stated.check_layers()
    assert stated.mtp is None  # a part of one is none
    with pytest.raises(ModelError, match="its weights hold 3"):
        Manifest(
            "m", {**CONFIG, "num_nextn_predict_layers": 1}, (*behind, entry("model.layers.3.a.weight"))
        ).check_layers()


def test_a_tails_memory_counts_its_head(tmp_path: Path) -> None:
    save_with_head("glm4_moe", tmp_path / "m")
    checkpoint = open_model(str(tmp_path / "m"), ModelStore(tmp_path / "s"))
    manifest = checkpoint.manifest
    without = Manifest("m", manifest.config, tuple(t for t in manifest.tensors if t not in manifest.mtp_tensors))
    with_head, bare = model_shape(manifest, torch.float32), model_shape(without, torch.float32)
    assert with_head.layer_bytes == bare.layer_bytes and with_head.head_bytes == bare.head_bytes
    read = sum(t.nbytes for t in manifest.mtp_tensors if "shared_head.head" not in t.name and "embed_tok" not in t.name)
    assert with_head.tail_bytes - bare.tail_bytes == read + bare.head_bytes


def test_a_head_of_another_width_is_refused(tmp_path: Path) -> None:
    save_with_head("glm4_moe", tmp_path / "m")
    checkpoint = open_model(str(tmp_path / "m"), ModelStore(tmp_path / "s"))
    tail = load_block(checkpoint, 3, 6, CPU, torch.float32)
    read = checkpoint.read

    def narrow(name: str, dtype: torch.dtype) -> torch.Tensor:
        return read(name, dtype)[:, 1:] if "eh_proj" in name else read(name, dtype)

    checkpoint.read = narrow  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="the MTP head of m joins by"):
        load_mtp(checkpoint, tail, "expanded")
    headless = replace(checkpoint.manifest, tensors=checkpoint.manifest.layer_tensors(0, 6))
    checkpoint.manifest = headless
    assert load_mtp(checkpoint, tail, "expanded") is None
