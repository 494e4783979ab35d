"""Zamba 2: blocks of weights that several layers share, and layers that look at their rows' tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from swarm.base.errors import ModelError
from swarm.discovery.model_shape import model_shape
from swarm.model.block import load_block
from swarm.model.files.store import ModelStore
from swarm.model.load import load_layers
from tests.models.configs import LAYERS, tiny_config
from tests.models.sweep import Reference, _apart, _random_model
from tests.swarm.model.tiny import CPU, MemoryCheckpoint

KINDS = ["zamba2", "zamba2-one", "zamba2-own"]
USERS = {"zamba2": {4: 1}, "zamba2-one": {3: 1, 4: 1}, "zamba2-own": {}}
"""Layers 1, 3 and 4 are hybrid: which shares the block of which."""


def stored_once(kind: str) -> MemoryCheckpoint:
    """A checkpoint as files have it: what layers share is stored with the first of them."""
    checkpoint = MemoryCheckpoint(_random_model(tiny_config(kind)))
    whole = checkpoint.manifest
    copies = tuple(f"model.layers.{layer}.shared_transf" for layer in whole.ties.shares)
    kept = tuple(t for t in whole.tensors if not t.name.startswith(copies))
    checkpoint.manifest = type(whole)(whole.model, whole.config, kept)
    return checkpoint


@pytest.mark.parametrize("kind", KINDS)
def test_exact_where_the_block_is_stored_in_another_stage(kind: str, tmp_path: Path) -> None:
    model = _random_model(tiny_config(kind))
    model.save_pretrained(tmp_path / "model")
    expected = Reference(model, torch.float32)
    assert _apart(tmp_path, (0, 2, 4, 5, LAYERS), expected, torch.float32) < 2e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("span", [(0, LAYERS), (2, 5), (4, 6), (2, 3)])
@pytest.mark.parametrize("exact", [True, False])
def test_a_node_reads_and_holds_a_shared_block_once(kind: str, span: tuple[int, int], exact: bool) -> None:
    checkpoint = stored_once(kind)
    manifest = checkpoint.manifest
    assert manifest.ties.shares == USERS[kind]
    used = {USERS[kind].get(layer, layer) for layer in (1, 3, 4) if span[0] <= layer < span[1]}
    block = load_block(checkpoint, *span, CPU, torch.float32, exact=exact)
    names = {t.name for t in manifest.layer_tensors(*span)}
    wanted = {f"model.layers.{layer}.shared_transformer.self_attn.q_proj.weight" for layer in used}
    assert {name for name in names if "shared_transformer.self_attn.q_proj" in name} == wanted
    read = [name for name in checkpoint.names_read if "shared_transformer" in name]
    assert sorted(read) == sorted(name for name in names if "shared_transformer" in name)
    layers: Any = block.loaded.model.model.layers
    held = {id(layer.shared_transformer.feed_forward.down_proj) for layer in layers if hasattr(layer, "linear")}
    attentions = {id(layer.shared_transformer.self_attn) for layer in layers if hasattr(layer, "linear")}
    assert len(held) == len(used) and len(attentions) == sum(span[0] <= layer < span[1] for layer in (1, 3, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_planning_counts_what_a_block_holds(kind: str) -> None:
    checkpoint = stored_once(kind)
    shape = model_shape(checkpoint.manifest, torch.float32)
    for first, last in ((0, 4), (1, 6), (0, LAYERS)):  # each of both blocks is used
        block = load_block(checkpoint, first, last, CPU, torch.float32, blocked=False)
        held = sum(p.nbytes for p in {id(p): p for p in block.loaded.model.parameters()}.values())
        planned = sum(shape.layer_bytes[first:last]) + shape.end_bytes(first, last)
        assert abs(planned - held) <= 0.01 * held, (first, last)
    one = load_block(checkpoint, 5, 6, CPU, torch.float32, blocked=False)
    assert sum(p.nbytes for p in one.loaded.model.parameters()) <= shape.layer_bytes[5] + shape.end_bytes(5, 6)


def test_a_range_loaded_in_pieces_is_the_same() -> None:
    checkpoint = stored_once("zamba2")
    whole, pieces = (
        load_layers(checkpoint, 0, LAYERS, CPU, torch.float32, lambda event: None, piece_bytes=size).model
        for size in (1 << 30, 1)
    )
    a, b = whole.state_dict(), pieces.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert sum(1 for _ in whole.parameters()) == sum(1 for _ in pieces.parameters())


@pytest.mark.parametrize("alike", [True, False])
def test_a_copy_of_a_shared_block_must_be_one(alike: bool, tmp_path: Path) -> None:
    _random_model(tiny_config("zamba2")).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    stored = load_file(path)
    name = "model.layers.{}.shared_transformer.pre_ff_layernorm.weight"
    stored[name.format(4)] = stored[name.format(1)].clone() + (0 if alike else 1)
    save_file(stored, path, {"format": "pt"})
    checkpoint = ModelStore(tmp_path / "store").open(str(tmp_path / "model"), (3, LAYERS))
    if alike:
        load_block(checkpoint, 3, LAYERS, CPU, torch.float32)
        return
    with pytest.raises(ModelError, match=r"layers\.4\.shared.* unlike model\.layers\.1\..*share a block"):
        load_block(checkpoint, 3, LAYERS, CPU, torch.float32)


def test_a_model_whose_shared_block_is_lost_is_refused() -> None:
    checkpoint = stored_once("zamba2")
    kept = tuple(t for t in checkpoint.manifest.tensors if "layers.1.shared_transformer" not in t.name)
    checkpoint.manifest = type(checkpoint.manifest)("torn", checkpoint.manifest.config, kept)
    with pytest.raises(ModelError, match="torn lacks .*shared_transformer"):
        load_block(checkpoint, 4, 5, CPU, torch.float32)


@pytest.mark.parametrize("blocks", [0, -1])
def test_a_config_without_blocks_is_refused(blocks: int) -> None:
    checkpoint = stored_once("zamba2")
    lying = {**checkpoint.manifest.config, "num_mem_blocks": blocks}
    manifest = type(checkpoint.manifest)("lie", lying, checkpoint.manifest.tensors)
    with pytest.raises(ModelError, match="shared blocks"):
        manifest.check_cut(0, 6)
