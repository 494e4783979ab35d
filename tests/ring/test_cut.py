"""Whoever leaves in the middle of a request leaves nothing behind: queues, sessions, keys and values, memory."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from draft.base import DraftStep, Expansion
from swarm.model.block import Job
from swarm.model.sampler import Sampling
from swarm.run.api import CommittedTokens, Finished, RingOpened, RunRequest
from swarm.run.learned_costs import Drafting
from swarm.run.run_loop import RunLoop
from swarm.stage.session import StageSession
from tests.ring.conftest import VOCAB, Stage, TestRing, reference

BLOCKS = [(0, 2), (2, 4), (4, 6)]


def kv_used(stage: Stage) -> int:
    hosted = stage.server.hosted
    assert hosted is not None
    return hosted.pool.budget_bytes - hosted.pool.free_bytes


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def slowed(stage: Stage, seconds: float) -> list[int]:
    """Its forwards take that long; the list grows by the rows of each."""
    hosted = stage.server.hosted
    assert hosted is not None
    whole, rows = hosted.block.view, list[int]()

    def view(first: int, last: int) -> Any:
        block = whole(first, last)
        forward = block.forward

        def slow(jobs: Sequence[Job]) -> Any:
            rows.append(sum(len(job.rows) for job in jobs))
            time.sleep(seconds)
            return forward(jobs)

        block.forward = slow  # type: ignore[method-assign]
        return block

    hosted.block.view = view  # type: ignore[method-assign]
    return rows


async def until(done: Callable[[], bool]) -> None:
    """Within a minute."""
    async with asyncio.timeout(60):
        while not done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Ponderous:
    """A drafter whose every beginning takes long, as a model's over a long prompt does."""

    name = "ponderous"

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> None:
        time.sleep(3.0)

    def step(self, step: DraftStep) -> list[Expansion]:
        return []


async def test_a_client_that_leaves_during_prefill_stops_every_stage_within_a_forward(
    make_ring: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tuple(random.Random(3).randrange(VOCAB) for _ in range(500))
    async with make_ring(BLOCKS) as ring:
        monkeypatch.setattr(ring.desk._drafting, "make", lambda request: Drafting("p", deferred=Ponderous()))
        core = ring.desk._core

        def hasty(*given: Any) -> Any:
            made = core(*given)
            made._chunk = 16  # 32 frames
            return made

        monkeypatch.setattr(ring.desk, "_core", hasty)
        forwards = [slowed(stage, 0.1) for stage in ring.stages]
        events = ring.desk.run(RunRequest(prompt, max_tokens=4))
        task = asyncio.create_task(anext(events))
        await until(lambda: len(forwards[2]) >= 3)
        before = [len(done) for done in forwards]
        task.cancel()
        await asyncio.wait([task])
        leaving = asyncio.create_task(events.aclose())
        await until(lambda: not any(stage.server.sessions for stage in ring.stages))
        assert not leaving.done(), "the drafter still ponders, and the ring is free all the same"
        assert all(len(done) <= was + 3 for done, was in zip(forwards, before, strict=True))  # of more than 25 each
        assert [kv_used(stage) for stage in ring.stages] == [0, 0, 0]
        await leaving


@pytest.mark.parametrize("requests", [12, pytest.param(200, marks=pytest.mark.soak)])
async def test_after_requests_of_which_half_are_cut_nothing_is_left(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, requests: int
) -> None:
    rng = random.Random(requests)

    async def one(ring: TestRing, number: int) -> None:
        prompt = tuple(rng.randrange(VOCAB) for _ in range(rng.randint(8, 400)))
        cut_after = rng.randint(0, 12) if number % 2 else 99
        async with aclosing(ring.desk.run(RunRequest(prompt, max_tokens=16))) as events:
            got: list[int] = []
            async for event in events:
                if isinstance(event, RingOpened) and cut_after == 0:
                    return
                if isinstance(event, CommittedTokens):
                    got += event.tokens
                    if len(got) >= cut_after:
                        return
                if isinstance(event, Finished):
                    assert list(event.result.token_ids) == reference(tiny_model, prompt, 16)

    async with make_ring(BLOCKS) as ring:
        for first in range(0, 40 if requests >= 200 else 8, 4):  # what is made once is made
            await asyncio.gather(*(one(ring, number) for number in range(first, first + 4)))
        gc.collect()
        before = resident_bytes()
        for first in range(0, requests, 4):
            await asyncio.gather(*(one(ring, number) for number in range(first, first + 4)))
        await until(lambda: not any(stage.server.sessions for stage in ring.stages))
        gc.collect()
        assert [kv_used(stage) for stage in ring.stages] == [0, 0, 0]
        assert not ring.desk.links and not ring.desk.loops
        assert not [left for left in gc.get_objects() if type(left) in (StageSession, RunLoop)]
        assert requests < 200 or resident_bytes() - before < 64 << 20
