"""Sessions that share a forward go on sharing: the first one back waits for the others."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from swarm.stage import batcher as pump
from swarm.stage import scheduler as schedule
from swarm.stage.batcher import Batcher


@dataclass
class Session:
    """What a pump sees of a session."""

    run: bytes
    queue: deque[Any] = field(default_factory=deque)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    last_served: int = 0
    kept_until: float = 0.0
    closing: bool = False
    closed: bool = False
    waits_for_constraint: bool = False

    def frame(self) -> None:
        self.queue.append(SimpleNamespace(frame=SimpleNamespace(rows=[0]), since=asyncio.get_running_loop().time()))


@dataclass
class Takes:
    """Says that a forward is done."""

    done: asyncio.Event

    def forwarded(self, seconds: float) -> None:
        pass

    def computed(self, done: Any) -> None:
        self.done.set()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[set[bytes]]:
    """The forwards, as who was in them. Waiting has no end, so that no test depends on the clock."""
    monkeypatch.setattr(schedule, "LINGER_GAP_S", 600.0)
    monkeypatch.setattr(schedule, "LINGER_SHARE", 1e9)
    seen: list[set[bytes]] = []

    def compute(batch: list[tuple[Session, Any]]) -> list[Any]:
        seen.append({session.run for session, _ in batch})
        return [None]

    monkeypatch.setattr(pump, "compute", compute)
    return seen


async def test_companions_are_waited_for_and_others_are_not(batches: list[set[bytes]]) -> None:
    a, b, c = (Session(name) for name in (b"a", b"b", b"c"))
    sessions = {s.run: s for s in (a, b, c)}
    done = asyncio.Event()
    engine = Batcher(cast(Any, sessions), 512, 1, Takes(done))

    async def forward() -> None:
        async with asyncio.timeout(30):
            await done.wait()
        done.clear()

    task = asyncio.create_task(engine.run())
    try:
        c.frame()
        engine.wake()
        await forward()
        a.frame()
        b.frame()
        engine.wake()
        await forward()
        a.frame()
        engine.wake()
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(batches) == 2  # a waits for b
        b.frame()
        engine.wake()
        await forward()
        b.closing = True
        a.frame()
        engine.wake()
        await forward()
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert batches == [{b"c"}, {b"a", b"b"}, {b"a", b"b"}, {b"a"}]
