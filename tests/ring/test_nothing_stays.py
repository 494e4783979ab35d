"""When a run is over, nothing of it goes on at a stage: no task, no padding, no object but what is kept on purpose."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from swarm.base.errors import CoverageError
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.net.peer import Peer
from swarm.ring.connect import PlainConnector
from swarm.ring.opening import OpenRun, RingSignal, StagePlan
from swarm.run.api import CommittedTokens, Finished, RingOpened, RunRequest
from swarm.stage import server as stage_server
from swarm.stage.session import StageSession
from tests.ring.conftest import Stage, TestRing, reference
from tests.ring.signed import signed_ring
from tests.ring.trials import MODES
from tests.swarm.net.test_let_go import left_over

BLOCKS = [(0, 2), (2, 4), (4, 6), (2, 4)]
PROMPT = tuple(range(1, 40))
CANCELLED = ("asyncio.events.TimerHandle", "_contextvars.Context")
"""Timers that were cancelled: the loop drops them once they are many, or when their time comes."""


def works(stage: Stage) -> list[str]:
    """What goes on at a stage beside its two lasting tasks: tasks of runs, and edges that are kept warm."""
    tasks = [f"a task of {stage.plan.first}" for _ in range(len(stage.server._stage.tasks))]
    return tasks + [f"an edge of {stage.plan.first}" for peer in stage.board.peers() if peer._warm]


async def idle(ring: TestRing) -> None:
    """Wait until nothing goes on at any stage that lives."""
    until = time.monotonic() + 10.0
    while found := [work for stage in ring.stages if stage.alive for work in works(stage)]:
        assert time.monotonic() < until, f"{found} go on, and no run is open"
        await asyncio.sleep(0.02)


async def test_a_session_that_another_one_replaces_ends_whole(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ring that broke before anything could be kept of it forms anew, with new sessions at the stages that stay."""
    taken: list[tuple[int, StageSession]] = []
    admit = stage_server.admit

    def noted(sessions: Any, hosted: Any, limits: Any, opening: OpenRun, *rest: Any) -> tuple[StageSession, bool]:
        session, fresh = admit(sessions, hosted, limits, replace(opening, keep=0), *rest)
        taken.append((opening.epoch, session))
        return session, fresh

    monkeypatch.setattr(stage_server, "admit", noted)
    async with make_ring(BLOCKS) as ring:
        async with aclosing(ring.desk.run(RunRequest(PROMPT, max_tokens=12))) as events:
            async for event in events:
                if isinstance(event, RingOpened) and ring.stages[1].alive:
                    await ring.stages[1].kill()
                if isinstance(event, Finished):
                    assert list(event.result.token_ids) == reference(tiny_model, PROMPT, 12)
        begun = Counter(epoch for epoch, _ in taken)
        assert begun[0] >= 2 and begun[1] >= 3 and len({id(session) for _, session in taken}) == len(taken)
        await idle(ring)
        assert all(session.closed and not session.tasks for _, session in taken)


async def test_a_session_that_ends_while_the_next_stage_is_dialled_begins_nothing(
    make_ring: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dials, go_on = asyncio.Event(), asyncio.Event()
    connect = PlainConnector.connect

    async def slow(self: PlainConnector, stage: StagePlan) -> Peer:
        if self._switchboard is ring.stages[0].board:
            dials.set()
            await go_on.wait()
        return await connect(self, stage)

    async with make_ring(BLOCKS[:3]) as ring:
        monkeypatch.setattr(PlainConnector, "connect", slow)
        head = ring.stages[0].server

        async def one() -> None:
            async with aclosing(ring.desk.run(RunRequest(PROMPT, max_tokens=4))) as events:
                async for _ in events:
                    pass

        run = asyncio.create_task(one())
        await dials.wait()
        for session in list(head.sessions.values()):
            head.sessions.free(session)  # as when its requester was silent for too long
        go_on.set()
        await ring.stages[0].board.peer(ring.stages[1].plan.node, ring.stages[1].plan.addresses)
        await idle(replace(ring, stages=ring.stages[:1]))
        run.cancel()
        await asyncio.wait([run])


@pytest.mark.parametrize("end", ["whole", "cut", "lost", "refused"])
async def test_a_run_is_free_at_once_however_it_ended(tiny_folder: Path, tmp_path: Path, end: str) -> None:
    """Nothing of it, here or at its stages, waits for Python's collector, which comes by after hours beside torch."""

    async def one(number: int) -> None:
        patience_s, mode = 0.0 if end == "refused" else 30.0, MODES[number % 4]
        wanted = RunRequest(PROMPT[: 5 + number], max_tokens=8, speculation=mode, patience_s=patience_s)
        lost = False
        async with aclosing(ring.desk.run(wanted, tmp_path / "receipt.json")) as events:
            async for event in events:
                if isinstance(event, CommittedTokens) and end == "cut":
                    return
                if isinstance(event, CommittedTokens) and end == "lost" and not lost:
                    lost, link = True, next(iter(ring.desk.links.values()))
                    link.take_word(RingSignal("lost", link.opening.run, link.opening.epoch, stage=1, reason="a test"))
                    del link

    async def some(numbers: range) -> None:
        for number in numbers:
            if end == "refused":
                with pytest.raises(CoverageError):
                    await one(number)
            else:
                await one(number)
        await asyncio.sleep(0.5)

    checkpoint: Any = open_model(str(tiny_folder), ModelStore(tmp_path / "models"))
    spans = BLOCKS[:2] if end == "refused" else BLOCKS
    async with signed_ring(checkpoint, spans, tmp_path) as ring:
        await some(range(4))
        found = Counter[str]()
        with left_over(found):
            await some(range(8))
    assert not [name for name in found if name.startswith(("swarm.", "receipts."))], found


async def test_a_run_leaves_its_place_in_two_indexes_and_nothing_else(tiny_folder: Path, tmp_path: Path) -> None:
    """Objects by type after some runs and after as many more: whole ones and cut ones."""

    async def one(number: int, path: Path) -> None:
        async with aclosing(ring.desk.run(RunRequest(PROMPT[: 5 + number], max_tokens=6), path)) as events:
            async for event in events:
                if isinstance(event, CommittedTokens) and number % 4 == 0:
                    return

    def objects() -> Counter[str]:
        gc.collect()
        return Counter(f"{type(found).__module__}.{type(found).__qualname__}" for found in gc.get_objects())

    async def more(numbers: range) -> Counter[str]:
        for number in numbers:
            await one(number % 10, tmp_path / f"{number}.json")
        until = time.monotonic() + 10.0
        while any(node.server.sessions or len(node.server._stage.tasks) for node in ring.nodes if node.server):
            assert time.monotonic() < until
            await asyncio.sleep(0.02)
        return objects()

    checkpoint: Any = open_model(str(tiny_folder), ModelStore(tmp_path / "models"))
    async with signed_ring(checkpoint, BLOCKS[:3], tmp_path) as ring:
        before, count = await more(range(12)), 16
        after = await more(range(12, 12 + count))
    grown = {name: after[name] - before[name] for name in after if after[name] - before[name] >= count // 2}
    for name in CANCELLED:
        grown.pop(name, None)
    assert grown == {"receipts.record.rows._Run": 3 * count}
