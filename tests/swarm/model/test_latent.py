"""Latent attention: slots hold the latent, what heads see is made at use; and indices that pick among slots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from swarm.base.errors import ModelError
from swarm.discovery.model_shape import model_shape
from swarm.model import latent
from swarm.model.block import load_block
from swarm.model.files.manifest import Manifest
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.latent import Latent, LatentLinear, latent_of, mark_latents, settle_latents
from swarm.model.overflow import SplitBlock, SplitPool
from swarm.model.rows import Layout, no_commits
from tests.models.configs import LAYERS, tiny_config
from tests.models.sweep import _random_model
from tests.swarm.model.tiny import CPU, MemoryCheckpoint, certain, chain_of

LAYOUT = Layout(scratch=8, context=64)
HEADS, RANK, ROPE, NOPE, VALUE = 3, 16, 4, 5, 6


class Attention(nn.Module):
    """As transformers writes it."""

    def __init__(self, twisted: bool = False) -> None:
        super().__init__()
        self.kv_b_proj = nn.Linear(RANK, HEADS * (NOPE + VALUE), bias=False)
        self.qk_rope_head_dim, self.qk_nope_head_dim, self.v_head_dim = ROPE, NOPE, VALUE
        self.twisted = twisted

    def expand_kv(self, row: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = self.kv_b_proj(row).view(1, row.shape[2], HEADS, -1).transpose(1, 2)
        key, value = both.split([NOPE, VALUE], -1)
        return torch.cat((key, rotated.expand(-1, HEADS, -1, -1)), -1), value * (2 if self.twisted else 1)


def settled(twisted: bool = False) -> Attention:
    torch.manual_seed(2)
    module = Attention(twisted).requires_grad_(False)
    mark_latents(module)
    settle_latents(module)
    return module


@pytest.mark.parametrize("expand", [False, True], ids=["absorbed", "expanded"])
@pytest.mark.parametrize("most", [1 << 26, 50], ids=["at once", "in turns"])
def test_both_ways_say_what_expanded_attention_says(expand: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = settled()
    found = latent_of(module)
    assert found is not None and isinstance(module.kv_b_proj, LatentLinear)
    monkeypatch.setattr(Latent, "expands", lambda self, rows, slots: expand)
    monkeypatch.setattr(latent, "_MOST_SCORES", most)
    query, entries = torch.randn(HEADS, 7, NOPE + ROPE), torch.randn(20, RANK + ROPE)
    mask = torch.zeros(7, 20).masked_fill(torch.rand(7, 20) < 0.4, float("-inf"))
    mask[:, 0] = 0
    key, value = Attention.expand_kv(module, entries[None, None, :, :RANK], entries[None, None, :, RANK:])
    for seen, sinks in ((mask, None), (None, None), (mask, torch.randn(HEADS))):
        out = found.attend(query, entries, seen, 0.3, sinks)
        scores = query @ key[0].transpose(1, 2) * 0.3 + (0 if seen is None else seen)
        more = scores.new_full((HEADS, 7, 1), float("-inf")) if sinks is None else sinks.view(-1, 1, 1).expand(-1, 7, 1)
        share = torch.cat((scores, more), -1).softmax(-1)[..., :-1]
        expected = (share @ value[0]).transpose(0, 1)[None]
        assert out.shape == (1, 7, HEADS, VALUE) and torch.allclose(out, expected, atol=1e-5)


def test_a_class_that_expands_in_another_way_keeps_what_heads_see() -> None:
    module = settled(twisted=True)
    assert latent_of(module) is None and "expand_kv" not in module.__dict__


def test_many_rows_are_expanded_and_few_are_not_unless_they_are_too_large() -> None:
    v3 = Latent(128, 512, 64, 128, 128, LatentLinear(1, 1), lambda a, b: (a, b))
    assert not v3.expands(1, 1000) and not v3.expands(16, 1000) and v3.expands(512, 2000)
    assert not v3.expands(512, 100_000)
    narrow = Latent(4, 8, 4, 8, 8, LatentLinear(1, 1), lambda a, b: (a, b))
    assert not narrow.expands(4096, 100)


@pytest.mark.parametrize(
    "kind", ["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu", "deepseek_v32", "glm_moe_dsa"]
)
def test_slots_hold_latents_and_planning_knows(kind: str) -> None:
    config = tiny_config(kind)
    checkpoint = MemoryCheckpoint(_random_model(config))
    block = load_block(checkpoint, 0, LAYERS, CPU, torch.float32)
    shape, pool = model_shape(checkpoint.manifest, torch.float32), KVPool(block, 1 << 30)
    width = config.kv_lora_rank + config.qk_rope_head_dim
    for layer in range(LAYERS):
        taken = pool.session_bytes(LAYOUT, layer, layer + 1)
        indexed = {"deepseek_v32": True, "glm_moe_dsa": layer in (0, 1, 4)}.get(kind, False)
        assert taken == (width + indexed * 8) * 4 * (LAYOUT.slots + 1)
        assert shape.session_bytes(layer, layer + 1, LAYOUT.slots + 1) == taken


def test_blocks_of_an_index_take_their_keys_and_planning_knows() -> None:
    checkpoint = MemoryCheckpoint(_random_model(tiny_config("minimax_m3-sparse")))
    block = load_block(checkpoint, 0, LAYERS, CPU, torch.float32)
    shape, pool = model_shape(checkpoint.manifest, torch.float32), KVPool(block, 1 << 30)
    for layer in range(LAYERS):
        taken = pool.session_bytes(LAYOUT, layer, layer + 1)
        assert taken == (2 * 2 * 8 + 8 * (layer % 3 > 0)) * 4 * (LAYOUT.slots + 1)
        assert shape.session_bytes(layer, layer + 1, LAYOUT.slots + 1) == taken


@pytest.mark.parametrize("kind", ["deepseek_v3", "glm_moe_dsa", "minimax_m3-sparse"])
def test_another_run_begins_from_the_latents_of_one(kind: str) -> None:
    model = _random_model(tiny_config(kind))
    chain = chain_of(MemoryCheckpoint(model), (0, 1, LAYERS))
    tokens = np.random.default_rng(4).integers(3, 97, 20).tolist()

    def said(text: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.tensor([text]), use_cache=False).logits[0, -1]  # type: ignore[no-any-return]

    one, other = chain.open(LAYOUT), chain.open(Layout(scratch=16, context=40))
    chain.run([(one, no_commits(), certain(tokens, 0, LAYOUT))])
    assert all(a.begin_from(b, 15) for a, b in zip(other, one, strict=True))
    for start, rest in ((15, [5, 6, 7]), (16, [9, 8])):  # the second goes back, as after a fault
        rows = certain(rest, start, Layout(scratch=16, context=40))
        out = chain.run([(other, no_commits(), rows)])[0]
        expected = said([*tokens[:15], *([5] if start == 16 else []), *rest])
        assert (out[-1] - expected).abs().max() <= 2e-4 * expected.abs().max()


def test_a_session_on_two_devices_takes_index_keys_over() -> None:
    model = _random_model(tiny_config("deepseek_v32"))
    front, back = chain_of(MemoryCheckpoint(model), (0, 2, LAYERS)).blocks
    block, pool = SplitBlock(front, back), SplitPool(KVPool(front, 1 << 30), KVPool(back, 1 << 30))
    one, other = pool.open(LAYOUT, 0, LAYERS), pool.open(LAYOUT, 0, LAYERS)
    tokens = np.random.default_rng(4).integers(3, 97, 20).tolist()
    whole = block.forward([Job(one, no_commits(), certain(tokens, 0, LAYOUT), None)])[0]
    assert other.begin_from(one, 15) and other.indexed
    rest = block.forward([Job(other, no_commits(), certain(tokens[15:], 15, LAYOUT), None)])[0]
    assert (rest - whole[15:]).abs().max() <= 2e-4 * whole.abs().max()


def test_layers_that_take_a_choice_stay_with_the_one_that_made_it() -> None:
    checkpoint = MemoryCheckpoint(_random_model(tiny_config("glm_moe_dsa")))
    assert checkpoint.manifest.ties.forbidden == {2, 3, 5}
    with pytest.raises(ModelError, match="before layer 3: layer 3 takes the choice of layer 1; layers 1-3 stay"):
        load_block(checkpoint, 3, LAYERS, CPU, torch.float32)
    values: dict[str, Any] = {**checkpoint.manifest.config, "indexer_types": ["shared"] * LAYERS}
    with pytest.raises(ModelError, match="layer 0 take a choice that no layer before it makes"):
        _ = Manifest("lie", values, checkpoint.manifest.tensors).ties
    with pytest.raises(ModelError, match="says 1000000000000 layers, its files hold"):
        _ = Manifest("lie", {**values, "num_hidden_layers": 10**12}, checkpoint.manifest.tensors).ties
