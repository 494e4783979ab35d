"""The compute side of a stage: frames are chosen in fair batches and computed on one thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch

from swarm.stage.compute import Computed, compute
from swarm.stage.scheduler import QueuedFrame, linger_until, pick
from swarm.stage.session import Arrived, StageSession

_FORWARD_GAIN = 0.2


class TakesForwards(Protocol):
    """Gets what comes of each forward, in the event loop."""

    def forwarded(self, seconds: float) -> None:
        """A forward took so long; its outcomes follow."""

    def computed(self, done: Computed) -> None:
        """The outcome of one frame in it."""


class Batcher:
    """Forward after forward over whatever waits in `sessions`; `owner` gets what comes of it.

    threads     of one operator
    row_budget  rows of one forward
    """

    def __init__(
        self,
        sessions: Mapping[bytes, StageSession],
        row_budget: int,
        threads: int,
        owner: TakesForwards,
    ) -> None:
        self._sessions, self._row_budget, self._owner = sessions, row_budget, owner
        # The number of threads of one operator is a property of the thread that runs it.
        self._thread = ThreadPoolExecutor(1, "compute", torch.set_num_threads, (threads,))
        self._work = asyncio.Event()
        self._came = asyncio.Event()
        self._forwards = 0
        self._forward_s = 0.0

    def wake(self) -> None:
        """A frame waits."""
        self._work.set()
        self._came.set()

    async def run(self) -> None:
        """Compute until cancelled."""
        try:
            while True:
                await self._work.wait()
                await self._gather()
                if not await self._forward():
                    self._work.clear()
        finally:
            self._thread.shutdown(wait=True, cancel_futures=True)

    async def _forward(self) -> bool:
        """Compute what is chosen; whether anything was. A method of its own, so that nothing of it is held after."""
        batch = self._choose()
        if not batch:
            return False
        for session, _ in batch:
            session.idle.clear()
        started = time.monotonic()
        try:
            done = await asyncio.get_running_loop().run_in_executor(self._thread, compute, batch)
        finally:
            spent = time.monotonic() - started
            self._forward_s += _FORWARD_GAIN * (spent - self._forward_s)
            for session, _ in batch:
                if session.closed:
                    session.release()
                session.idle.set()
        self._owner.forwarded(spent)
        for outcome in done:
            self._owner.computed(outcome)
        return True

    async def _gather(self) -> None:
        """Give the sessions that shared a forward a moment to share the next one."""
        while True:
            self._came.clear()
            absent = [s.last_served for s in self._sessions.values() if not (s.queue or s.closing or s.kept_until)]
            left = linger_until(self._waiting(), absent, self._forward_s) - time.monotonic()
            if left <= 0.0:
                return
            try:
                async with asyncio.timeout(left):
                    await self._came.wait()
            except TimeoutError:
                return

    def _waiting(self) -> list[QueuedFrame]:
        return [
            QueuedFrame(s.run, len(s.queue[0].frame.rows), s.last_served, s.queue[0].since)
            for s in self._sessions.values()
            if s.queue and not s.waits_for_constraint
        ]

    def _choose(self) -> list[tuple[StageSession, Arrived]]:
        self._forwards += 1
        chosen = [self._sessions[key] for key in pick(self._waiting(), self._row_budget)]
        for session in chosen:
            session.last_served = self._forwards
        return [(session, session.queue.popleft()) for session in chosen]
