"""The same request gives the same tokens and the same log-probabilities, however it is computed: plain or with drafts,
over any cut, beside others, from a prefix that stages hold; in bfloat16 as in float32, at every temperature."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

from swarm.model.quant.native import library
from swarm.model.sampler import Sampling
from swarm.run.api import RunRequest
from tests.ring.test_ring import CUTS, prompts
from tests.ring.told import Told, told

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")

MODES = ("plain", "chain", "tree", "stream")
TEMPERATURES = (0.0, 0.3, 0.7, 1.0, 1.5)
TOKENS = 24


def requests(prompt: tuple[int, ...], temperature: float, seed: int) -> list[RunRequest]:
    limits = {"top_p": 0.95, "top_k": 40, "repetition_penalty": 1.1} if seed % 2 else {"min_p": 0.02, "top_p": 0.9}
    sampling = Sampling(temperature=temperature, seed=seed, logprobs=3, **limits)  # type: ignore[arg-type]
    return [RunRequest(prompt, TOKENS, sampling, speculation=mode, draft="lm") for mode in MODES]  # type: ignore[arg-type]


async def everything(
    make_ring: Callable[..., Any], dtype: torch.dtype, stages: int, count: int, temperatures: tuple[float, ...]
) -> list[Told]:
    """All requests of all modes at once on one ring, and once more one by one from prefixes that stages hold."""
    found: list[Told] = []
    async with make_ring(CUTS[stages], dtype=dtype, keep_s=60.0) as ring:
        for temperature in temperatures:
            for seed, prompt in enumerate(prompts(count, seed=int(temperature * 10))):
                asked = requests(prompt, temperature, seed)
                first = await asyncio.gather(*(told(ring, request) for request in asked))
                again = await told(ring, asked[seed % len(asked)])
                assert len({*first, again}) == 1, f"temperature {temperature}, seed {seed}"
                found.append(again)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
async def test_modes_cuts_company_and_prefixes_change_no_bit(make_ring: Callable[..., Any], dtype: torch.dtype) -> None:
    two, three = [await everything(make_ring, dtype, stages, 1, (0.0, 0.8)) for stages in (2, 3)]
    assert two == three


@pytest.mark.soak
@pytest.mark.timeout(3000)
async def test_five_hundred_runs_change_no_bit(make_ring: Callable[..., Any]) -> None:
    one, three, five = [await everything(make_ring, torch.bfloat16, stages, 7, TEMPERATURES) for stages in (1, 3, 5)]
    assert one == three == five  # 3 cuts x 5 temperatures x 7 prompts x (4 modes + 1 again) = 525 runs
