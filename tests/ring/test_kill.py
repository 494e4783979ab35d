"""Processes of a ring are killed with SIGKILL at random times: the run goes on, and its tokens are the same."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from receipts.check.verify import verify
from tests.ring.conftest import VOCAB
from tests.ring.nest import nest
from tests.ring.test_processes import folder
from tests.ring.trials import Blows, all_serve, connected, kill, random_request, undisturbed

__all__ = ["folder"]  # a fixture, used by name

BLOCKS = [(0, 2), (2, 4), (4, 6)]
TOKENS = 64


async def killings(folder: Path, state: Path, seeds: range) -> int:
    """How many runs lost a stage; every one of them must have the tokens of transformers and a receipt."""
    whole = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    struck = 0
    async with nest(folder, state / "nodes") as nodes:
        await nodes.add(BLOCKS[0])
        await asyncio.gather(*(nodes.add(block) for block in (BLOCKS * 2)[1:]))
        requester = await connected(nodes, state / "asker", draft="lm", draft_model=str(folder))
        async with requester:
            for seed in seeds:
                rng = random.Random(seed)
                async with asyncio.timeout(60):
                    await all_serve(nodes, requester)
                request = random_request(rng, VOCAB, TOKENS)
                blows = Blows(
                    nodes, requester, request, rng.randint(1, TOKENS), rng.randrange(3), rng.random() * 0.02, kill
                )
                trial = await blows.run()
                seen = (seed, request.speculation, request.draft, trial.place, trial.reasons)
                assert list(trial.result.token_ids) == undisturbed(whole, request), seen
                verdict = verify(Path(str(trial.result.receipt)).read_bytes())
                assert verdict.refusal is None, (seen, verdict.refusal)
                struck += trial.result.recoveries > 0
                if trial.victim is not None:
                    assert await trial.victim.ended() == -9
                    await nodes.again(trial.victim)
    return struck


async def test_a_few_killed_processes(folder: Path, tmp_path: Path) -> None:
    assert await killings(folder, tmp_path, range(1, 6)) >= 3


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_two_hundred_killed_processes(folder: Path, tmp_path: Path) -> None:
    struck, first = 0, 1000
    while struck < 200:
        struck += await killings(folder, tmp_path / str(first), range(first, first + 50))
        first += 50
