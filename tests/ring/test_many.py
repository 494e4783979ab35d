"""Unequal node processes choose their layers: joins at once, a leave, a kill -9, a hole filled, answers throughout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.bench.heal import CAPACITIES, LONG_TOKENS, heal, make_model


def reference(folder: Path, ids: list[int], tokens: int) -> list[int]:
    """What transformers generates, greedily."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([ids]), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None
        )
    return [int(t) for t in whole[0, len(ids) :]]


@pytest.mark.parametrize("nodes", [4, pytest.param(8, marks=pytest.mark.soak)])
async def test_a_survivor_fills_what_a_death_opened_and_nobody_else_moves(nodes: int, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    state = tmp_path / "swarm"
    state.mkdir()
    healed = await heal(model, state, CAPACITIES[nodes], settle_s=0.0)
    assert healed.hole > 0
    assert len(healed.moved) == 1
    assert healed.long.finish_reason == "length" and healed.recoveries >= 1
    ids = list(healed.long.prompt_token_ids)
    expected = reference(model, ids, LONG_TOKENS)
    assert list(healed.long.token_ids) == expected
    assert list(healed.short.token_ids) == expected[:6]
