"""In bfloat16 a ring may differ from transformers, but only where two tokens were as good as equal; never from itself.

How many rows torch computes at once changes its rounding, and its sums have another order than the kernels'. The noise
of one of its logits is measured as the largest difference between computing a text row by row and at once; a first
difference must sit where the two best logits are closer than twice that. The ring's own tokens follow neither from
drafts nor from cuts nor from company.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from swarm.model.quant.native import library
from swarm.run.api import RunRequest
from tests.ring.test_ring import CUTS, generate, prompts

TOKENS = 64


@pytest.fixture(scope="module")
def rounded(tiny_folder: Path) -> LlamaForCausalLM:
    """The model whole, in bfloat16."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    return model.eval()


@torch.inference_mode()
def decode(model: LlamaForCausalLM, prompt: Sequence[int], count: int) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens row by row, and the logits [count, vocab] that chose them."""
    cache = DynamicCache()
    fed, tokens, rows = torch.tensor([list(prompt)]), [], []
    for _ in range(count):
        logits = model(fed, past_key_values=cache).logits[0, -1].float()
        rows.append(logits)
        tokens.append(int(logits.argmax()))
        fed = torch.tensor([[tokens[-1]]])
    return tokens, torch.stack(rows)


@torch.inference_mode()
def noise(model: LlamaForCausalLM, prompt: Sequence[int], tokens: Sequence[int], rows: torch.Tensor) -> float:
    """Largest difference of a logit when the same text is computed at once."""
    whole = model(torch.tensor([[*prompt, *tokens[:-1]]])).logits[0, len(prompt) - 1 :].float()
    return float((whole - rows).abs().max())


async def test_a_first_difference_is_a_near_tie_and_drafts_cuts_and_company_change_no_token(
    make_ring: Callable[..., Any], rounded: LlamaForCausalLM
) -> None:
    asked = prompts(20, seed=31)
    async with make_ring(CUTS[3], dtype=torch.bfloat16) as ring:

        async def told(speculation: Any) -> Any:
            requests = (RunRequest(prompt, max_tokens=TOKENS, speculation=speculation) for prompt in asked)
            return await asyncio.gather(*(generate(ring, request) for request in requests))

        results, drafted = await told("plain"), await told("chain")
    if library() is not None:
        assert [one.token_ids for one in drafted] == [one.token_ids for one in results]
        async with make_ring(CUTS[1], dtype=torch.bfloat16) as whole:
            for prompt, one in list(zip(asked, results, strict=True))[:4]:
                alone = await generate(whole, RunRequest(prompt, max_tokens=TOKENS, speculation="plain"))
                assert alone.token_ids == one.token_ids
    truths = [decode(rounded, prompt, TOKENS) for prompt in asked]
    limit = 2 * max(noise(rounded, p, tokens, rows) for p, (tokens, rows) in zip(asked, truths, strict=True))
    equal = 0
    for result, (tokens, rows) in zip(results, truths, strict=True):
        at = next((i for i, (a, b) in enumerate(zip(result.token_ids, tokens, strict=True)) if a != b), None)
        if at is None:
            equal += 1
            continue
        gap = float(rows[at].max() - rows[at][result.token_ids[at]])
        assert gap <= limit, (
            f"token {at}: {result.token_ids[at]} lies {gap:.4f} under the best, noise is {limit / 2:.4f}"
        )
    assert equal > 0, "not one run agrees whole"
