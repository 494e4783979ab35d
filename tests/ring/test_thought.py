"""Limits of thoughts round a ring: the same answer in every way to run, by hand too, and in replays and audits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from receipts.check.verdict import Level
from receipts.check.verify import verify
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.sampler import Sampling, pick
from swarm.model.shaping import Shaping
from swarm.model.thought import ThoughtLimit
from swarm.run.api import RunRequest

from .signed import signed_ring
from .test_shaped import logits_after
from .test_signed import PROMPT, SPANS, audited, replaying, wide

__all__ = ["wide"]

MODES = ("plain", "chain", "tree", "stream")
CLOSE = (211, 97)
LIMIT = ThoughtLimit(9, CLOSE, (), True)
TOKENS = 24


def alone(checkpoint: Checkpoint, sampling: Sampling) -> list[int]:
    """Nine tokens as they are drawn, the mark, and on."""
    tokens = list(PROMPT)
    while len(tokens) < len(PROMPT) + TOKENS:
        place = len(tokens) - len(PROMPT) - LIMIT.most
        if 0 <= place < len(CLOSE):
            tokens.append(CLOSE[place])
        else:
            tokens.append(pick(logits_after(checkpoint, tokens)[-1:], [len(tokens)], sampling)[0].token)
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("free", [Sampling(), Sampling(0.9, seed=5, top_p=0.95)], ids=["greedy", "sampled"])
async def test_a_thought_is_closed_by_order(wide: Checkpoint, tmp_path: Path, free: Sampling) -> None:
    expected = alone(wide, free)
    sampling = Sampling(free.temperature, seed=free.seed, top_p=free.top_p, shaping=Shaping(thought=LIMIT))
    passes = {}
    async with signed_ring(wide, [*SPANS, SPANS[1]], tmp_path) as ring:
        for mode in MODES:
            request = RunRequest(PROMPT, TOKENS, sampling, speculation=mode)  # type: ignore[arg-type]
            result = await ring.generate(request)
            assert list(result.token_ids) == expected, mode
            passes[mode] = result.passes
        path = Path(str(result.receipt))
        verdict = verify(path.read_bytes())
        assert verdict.exit_code == 0 and "thoughts closed after 9 tokens" in str(verdict.claims), verdict.line
        checked = await audited(ring, path, wide)
        assert (checked.exit_code, checked.level) == (0, Level.SAMPLED), checked.line
        replayed = await asyncio.to_thread(verify, path.read_bytes(), replaying(path, wide))
        assert (replayed.exit_code, replayed.level) == (0, Level.REPLAYED), replayed.line
        lost = await ring.generate(RunRequest(PROMPT, TOKENS, sampling, speculation="stream"), drop_after=8)
        assert lost.recoveries == 1 and list(lost.token_ids) == expected
    assert passes["plain"] <= TOKENS - len(CLOSE) + 1  # the mark rides along with what comes after it
