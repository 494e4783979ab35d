"""Memory and descriptors of a ring's processes, of nodes and of the asker, over many short runs of all lengths."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from swarm.client.client import Requester
from swarm.run.api import Finished, RunRequest
from tests.attacks.stranger import descriptors, resident
from tests.bench.heal import make_model
from tests.ring.nest import Nest, nest
from tests.ring.trials import all_serve, connected

AT_ONCE = 4
TAKEN_ONCE = 24 << 20
"""What caches, arenas and pools still take after the first runs."""
PER_RUN = 4096
"""What a run may leave for long: the place of its kept rows on disk, a line of the order book."""


@pytest.fixture
async def ring(tmp_path: Path) -> AsyncIterator[tuple[Nest, Requester]]:
    async with nest(make_model(tmp_path / "model"), tmp_path / "nodes") as nodes:
        for block in ((0, 6), (6, 12)):
            await nodes.add(block)
        async with await connected(nodes, tmp_path / "asker", draft="suffix") as requester:
            async with asyncio.timeout(60):
                await all_serve(nodes, requester)
            yield nodes, requester


async def runs(requester: Requester, numbers: range) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        draw = random.Random(number)
        prompt = tuple(draw.randrange(5, 90) for _ in range(draw.randint(2, 60)))
        request = RunRequest(prompt, max_tokens=draw.randint(1, 6), ignore_eos=True)
        async with room, aclosing(requester.run(request)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    assert event.result.finish_reason == "length"
                elif number % 5 == 0:
                    return  # one in five is cut

    for first in range(numbers.start, numbers.stop, 100):
        await asyncio.gather(*(one(number) for number in range(first, min(numbers.stop, first + 100))))


async def unchanged(ring: tuple[Nest, Requester], before: int, more: int) -> None:
    nodes, requester = ring
    pids = [os.getpid(), *(node.pid for node in nodes.nodes)]
    await runs(requester, range(before))
    gc.collect()
    open_before, was = [descriptors(pid) for pid in pids], [resident(pid) for pid in pids]
    await runs(requester, range(before, before + more))
    gc.collect()
    grown = [resident(pid) - memory for pid, memory in zip(pids, was, strict=True)]
    print(f"{more} runs after {before}: MB more of asker and nodes: {[round(size / 1e6, 2) for size in grown]}")
    assert max(grown) < TAKEN_ONCE + more * PER_RUN
    assert not requester.desk.links and not requester.desk.loops
    until = time.monotonic() + 20
    while any(descriptors(pid) > known + 2 for pid, known in zip(pids, open_before, strict=True)):
        assert time.monotonic() < until, "descriptors stay open after their runs"
        await asyncio.sleep(0.1)


async def test_short_runs_leave_nothing_behind(ring: tuple[Nest, Requester]) -> None:
    await unchanged(ring, 60, 60)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [1_500, 10_000])
async def test_thousands_of_short_runs_leave_nothing_behind(ring: tuple[Nest, Requester], count: int) -> None:
    await unchanged(ring, count // 5, count - count // 5)
