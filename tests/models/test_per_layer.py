"""Gemma 3n and Gemma 4: inputs for every layer, shared keys and values, and where such models may be cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from swarm.base.errors import ModelError
from swarm.discovery.model_shape import model_shape
from swarm.model.block import load_block
from swarm.model.files.store import ModelStore
from swarm.model.files.ties import ties_of
from swarm.model.kvcache import KVPool
from swarm.model.load import load_layers
from swarm.model.rows import Layout
from tests.models.configs import LAYERS, tiny_config
from tests.models.sweep import Reference, _apart, _random_model
from tests.swarm.model.tiny import CPU, MemoryCheckpoint

CUTS = ((0, 6), (0, 1, 6), (0, 2, 6), (0, 1, 2, 6))
"""All that layers 4 and 5 allow, which read what 2 and 3 keep."""
LAYOUT = Layout(scratch=8, context=64)


@pytest.mark.parametrize("kind", ["gemma3n_text", "gemma4_text", "gemma4-tied"])
def test_exact_in_every_allowed_cut(kind: str, tmp_path: Path) -> None:
    model = _random_model(tiny_config(kind))
    model.save_pretrained(tmp_path / "model")
    expected = Reference(model, torch.float32)
    assert max(_apart(tmp_path, cuts, expected, torch.float32) for cuts in CUTS) < 2e-4


def test_token_ids_that_the_layers_table_lacks(tmp_path: Path) -> None:
    """Gemma 3n takes the first row of the table for them; Gemma 4 has no row for them, and fails when one comes."""
    config = tiny_config("gemma3n_text")
    config.vocab_size_per_layer_input = 40
    model = _random_model(config)
    model.save_pretrained(tmp_path / "model")
    assert _apart(tmp_path, CUTS[3], Reference(model, torch.float32), torch.float32) < 2e-4
    config = tiny_config("gemma4_text")
    config.vocab_size_per_layer_input = 40
    with pytest.raises(ModelError, match=r"40 token ids \(vocab_size_per_layer_input\), its vocabulary has 97"):
        load_block(MemoryCheckpoint(_random_model(config)), 0, 2, CPU, torch.float32)


@pytest.mark.parametrize("span", [(0, 3), (3, 6), (2, 5), (4, 6)])
def test_a_forbidden_cut_is_refused_by_name(span: tuple[int, int]) -> None:
    checkpoint = MemoryCheckpoint(_random_model(tiny_config("gemma4_text")))
    with pytest.raises(ModelError, match="reads the keys and values of layer [23]; layers 2-5 stay together"):
        load_block(checkpoint, *span, CPU, torch.float32)
    assert checkpoint.bytes_read == 0
    block = load_block(checkpoint, 0, LAYERS, CPU, torch.float32)
    with pytest.raises(ValueError, match="read each other's keys"):
        block.view(*span)


def test_a_stage_holds_its_layers_part_of_the_tables() -> None:
    model = _random_model(tiny_config("gemma3n_text"))
    block = load_block(MemoryCheckpoint(model), 1, 2, CPU, torch.float32)
    inner: Any = block.loaded.model.model
    assert torch.equal(inner.embed_tokens_per_layer.weight, model.model.embed_tokens_per_layer.weight[:, 8:16])
    assert torch.equal(inner.per_layer_model_projection.weight, model.model.per_layer_model_projection.weight[8:16])
    assert all(isinstance(part, torch.nn.Identity) for part in inner.altup_projections)
    assert block.hidden_size == 4 * 32


def test_a_range_loaded_in_pieces_is_the_same() -> None:
    checkpoint = MemoryCheckpoint(_random_model(tiny_config("gemma3n_text")))
    whole, pieces = (
        load_layers(checkpoint, 0, LAYERS, CPU, torch.float32, lambda event: None, piece_bytes=size).model.state_dict()
        for size in (1 << 30, 1)
    )
    assert whole.keys() == pieces.keys() and all(torch.equal(whole[name], pieces[name]) for name in whole)


@pytest.mark.parametrize("kind", ["gemma3n_text", "gemma4-tied", "gemma4-large"])
def test_planning_counts_what_a_session_takes(kind: str) -> None:
    checkpoint = MemoryCheckpoint(_random_model(tiny_config(kind)))
    block = load_block(checkpoint, 0, LAYERS, CPU, torch.float32)
    shape, pool = model_shape(checkpoint.manifest, torch.float32), KVPool(block, 1 << 30)
    for layer in range(LAYERS):
        taken = pool.session_bytes(LAYOUT, layer, layer + 1)
        assert shape.session_bytes(layer, layer + 1, LAYOUT.slots + 1) == taken
        assert (taken == 0) == (kind != "gemma4-large" and layer >= 4)
    assert shape.forbidden == (frozenset() if kind == "gemma4-large" else frozenset({3, 4, 5}))
    assert shape.row_bytes == 4 * block.hidden_size


@pytest.mark.parametrize("kind", ["gemma3n_text", "gemma4_text"])
def test_planning_counts_what_a_block_holds(kind: str) -> None:
    checkpoint = MemoryCheckpoint(_random_model(tiny_config(kind)))
    shape = model_shape(checkpoint.manifest, torch.float32)
    for first, last in ((0, 1), (1, 2), (2, 6), (0, 6)):
        block = load_block(checkpoint, first, last, CPU, torch.float32, blocked=False)
        held = sum(p.nbytes for p in {id(p): p for p in block.loaded.model.parameters()}.values())
        held += sum(b.nbytes for name, b in block.loaded.model.named_buffers() if name.endswith("layer_scalar"))
        planned = sum(shape.layer_bytes[first:last]) + shape.end_bytes(first, last)
        # A norm stands with the table, and norms take buffers that are not counted.
        assert abs(planned - held) <= 0.12 * held, (first, last)


def test_the_text_half_of_a_wrapper_says_what_the_whole_model_says(tmp_path: Path) -> None:
    t = transformers
    text = {**tiny_config("gemma4_text").to_dict(), "tie_word_embeddings": True}
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 8, "position_embedding_size": 16,
    }  # fmt: skip
    config = t.Gemma4Config(text_config=text, vision_config=vision, audio_config=None)
    torch.manual_seed(3)
    model = t.Gemma4ForConditionalGeneration(config).eval()
    for name, weight in model.named_parameters():
        noise = torch.randn_like(weight)
        weight.data = weight.data + 0.1 * noise if weight.dim() == 1 or "norm" in name else noise * 0.2
    model.save_pretrained(tmp_path / "model")
    expected = Reference(model, torch.float32)
    assert max(_apart(tmp_path, cuts, expected, torch.float32) for cuts in CUTS[::3]) < 2e-4


def test_the_text_half_of_gemma_3n_by_the_names_of_its_files(tmp_path: Path) -> None:
    """Its wrapper is not built without a library for pictures, so its files are made from its text half's."""
    folder = tmp_path / "model"
    config = tiny_config("gemma3n_text")
    config.tie_word_embeddings = True
    model = _random_model(config)
    model.save_pretrained(folder)
    expected = Reference(model, torch.float32)
    stored = load_file(folder / "model.safetensors")
    stored = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in stored.items()}
    stored["model.vision_tower.conv_stem.weight"] = torch.zeros(3)
    # Layers that read another's keys come with projections of their own, which nobody uses.
    stored["model.language_model.layers.5.self_attn.k_proj.weight"] = torch.zeros(16, 32)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    inside = json.loads((folder / "config.json").read_text())
    outer = {
        "model_type": "gemma3n", "architectures": ["Gemma3nForConditionalGeneration"], "text_config": inside,
        "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(outer))
    assert _apart(tmp_path, CUTS[3], expected, torch.float32) < 2e-4
    manifest = ModelStore(tmp_path / "store").open(str(folder)).manifest
    assert manifest.row_width == 128 and not any("vision" in t.name for t in manifest.layer_tensors(0, LAYERS))


def test_a_config_whose_layers_read_keys_that_none_keeps_is_refused() -> None:
    checkpoint = MemoryCheckpoint(_random_model(tiny_config("gemma4_text")))
    lying = {**checkpoint.manifest.config, "num_kv_shared_layers": 5}
    manifest = type(checkpoint.manifest)("lie", lying, checkpoint.manifest.tensors)
    with pytest.raises(ModelError, match="does not say whose keys its layers read"):
        manifest.check_cut(0, 6)


@pytest.mark.parametrize(("kind", "key"), [("hy_v4", "hc_mult"), ("gemma3n_text", "altup_num_inputs")])
@pytest.mark.parametrize("streams", [0, -4, 1 << 30])
def test_a_config_that_makes_rows_of_countless_streams_is_refused(kind: str, key: str, streams: int) -> None:
    config = {**tiny_config(kind).to_dict(), key: streams}
    with pytest.raises(ModelError, match=f"rows of {streams} streams"):
        ties_of(config, "odd", 1000)


@pytest.mark.parametrize("kind", ["hy_v4", "gemma3n_text"])
def test_what_a_requester_computes_itself_enters_the_first_layer(kind: str) -> None:
    """Rows of several streams, as one row each: what the head's first layer is given."""
    block = load_block(MemoryCheckpoint(_random_model(tiny_config(kind))), 0, 1, CPU, torch.float32)
    rows = block.embedded([5, 6, 7])
    streams = block.ties.streams
    assert rows.shape == (3, block.hidden_size) and block.hidden_size == 32 * streams
    table = block.loaded.model.get_input_embeddings()
    given = table(torch.tensor([5, 6, 7])).float()
    if kind == "hy_v4":
        assert torch.equal(rows, given.repeat(1, streams))
    else:
        assert torch.equal(rows[:, :32], given)
