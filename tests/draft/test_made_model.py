"""A drafter read as it is stored holds its file's own numbers, and drafts what it does when loaded as models are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from draft.asset import SCALE, MadeCheckpoint, default_drafter, read_made
from draft.lm import LmDrafter
from draft.made_model import stored_model
from draft.packed import Int8Linear, can_pack, pack_linears
from swarm.base.errors import ModelError, UsageError
from swarm.model.block import load_block
from swarm.model.files.checkpoint import open_model
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.sampler import Sampling

CPU = torch.device("cpu")
needs_kernel = pytest.mark.skipif(not can_pack(CPU, torch.bfloat16), reason="this torch has no int8 kernel")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeCheckpoint:
    target = open_model(DEFAULT_MODEL, ModelStore(tmp_path_factory.mktemp("models")), (0, 1))
    folder = default_drafter(target.manifest)
    assert folder is not None
    found = read_made(folder)
    assert found is not None
    return MadeCheckpoint(found, target)


@needs_kernel
def test_the_shipped_drafter_drafts_the_same_both_ways(made: MadeCheckpoint) -> None:
    said = []
    for stored in (False, True):
        dtype, tokens = torch.bfloat16, made.head_tokens()
        ready = stored_model(made, made.stored(dtype), SCALE, dtype) if stored else None
        block = load_block(made, 0, made.manifest.n_layers, CPU, dtype, blocked=False, ready=ready)
        assert tokens is not None
        block.narrow_head(tokens)
        pack_linears(block.loaded.model)
        assert sum(isinstance(m, Int8Linear) for m in block.loaded.model.modules()) == 7 * made.manifest.n_layers + 1
        drafter = LmDrafter(block, tokens, context=256)
        drafter.begin([*range(100, 140)], Sampling())
        said.append(drafter._text.root.ranks or ())
        if stored:
            whole, model = made.stored(dtype), block.loaded.model
            for name in ("model.layers.0.self_attn.k_proj", "model.layers.4.mlp.down_proj"):
                packed = model.get_submodule(name)
                assert isinstance(packed, Int8Linear)
                assert torch.equal(packed.packed[: packed.rows], whole[f"{name}.weight"])
                assert torch.equal(packed.scale[: packed.rows], whole[f"{name}.weight{SCALE}"].to(dtype))
    # Through bfloat16 and back, scales are rounded once more.
    assert [child.token for child in said[0]][:2] == [child.token for child in said[1]][:2]
    for one, other in zip(*said, strict=True):
        assert abs(one.confidence - other.confidence) < 0.02


def test_torn_files_are_refused(made: MadeCheckpoint) -> None:
    whole: Mapping[str, torch.Tensor] = made.stored(torch.bfloat16)
    layer = "model.layers.0.self_attn.q_proj.weight"
    lacking = {name: tensor for name, tensor in whole.items() if name != "model.norm.weight"}
    with pytest.raises(UsageError, match="lacks model.norm.weight"):
        stored_model(made, lacking, SCALE, torch.bfloat16)
    with pytest.raises(UsageError, match="do not fit its config"):
        stored_model(made, {n: t for n, t in whole.items() if n != layer + SCALE}, SCALE, torch.bfloat16)
    with pytest.raises(UsageError, match="a finite scale for each row"):
        stored_model(made, {**whole, layer + SCALE: whole[layer + SCALE] * 0}, SCALE, torch.bfloat16)
    with pytest.raises(ModelError, match="finite numbers in model.norm.weight"):
        norm = {"model.norm.weight": whole["model.norm.weight"] * float("nan")}
        stored_model(made, {**whole, **norm}, SCALE, torch.bfloat16)


def test_other_types_are_loaded_as_they_were(made: MadeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made.config, "model_type", "qwen3")
    assert stored_model(made, {}, SCALE, torch.bfloat16) is None
    assert Path(made._file).is_file()
