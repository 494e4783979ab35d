"""The dashboard's live state: computed once for all viewers, and only while somebody looks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from swarm.serve.errors import ApiError
from swarm.serve.state import DashboardState

MAX_VIEWERS = 256


class HasState(Protocol):
    """What a dashboard shows: a model's desk, or a node."""

    def state(self) -> DashboardState:
        """As it is now."""


@dataclass(frozen=True)
class StateText:
    """A state as JSON, made once for all viewers: `rest` of it is an object without "runs", which stand apart, each
    with its key, since some viewers may see their own alone."""

    rest: str = "{}"
    runs: tuple[tuple[int, str], ...] = ()

    def shown(self, own: frozenset[int] | None = None) -> str:
        """The whole, with the runs whose keys are `own`; None: all."""
        runs = ",".join(text for key, text in self.runs if own is None or key in own)
        return f'{self.rest[:-1]},"runs":[{runs}]}}'


def written(state: DashboardState) -> StateText:
    """A state's JSON."""
    told = state.as_json()
    del told["runs"]
    runs = tuple((run.key, _json(run.as_json())) for run in state.runs)
    return StateText(_json(told), runs)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class StateBroadcaster:
    """Viewers wait for the next version of the state.

    `touch` says that something changed; then the state is computed at most once per `soon_s`. Without it the state is
    looked at once per `idle_s`, for changes that nobody announces (other nodes).
    """

    def __init__(self, shown: HasState, soon_s: float = 0.2, idle_s: float = 1.0) -> None:
        self._shown = shown
        self._soon_s = soon_s
        self._idle_s = idle_s
        self._dirty = asyncio.Event()
        self._fresh = asyncio.Condition()
        self._viewers = 0
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.version = 0
        self.text = StateText()

    async def close(self) -> None:
        """Let every viewer go."""
        async with self._fresh:
            self._closed = True
            self._fresh.notify_all()

    def touch(self) -> None:
        self._dirty.set()

    def compute(self) -> StateText:
        return written(self._shown.state())

    async def next(self, seen: int) -> tuple[int, StateText] | None:
        """The newest state, as soon as it is newer than version `seen`; None at the end. For use inside `viewer`."""
        async with self._fresh:
            await self._fresh.wait_for(lambda: self._closed or self.version > seen)
            return None if self._closed else (self.version, self.text)

    @asynccontextmanager
    async def viewer(self) -> AsyncIterator[None]:
        """Keep the state fresh for as long as this is entered. Raises ApiError 503 when too many look."""
        if self._viewers >= MAX_VIEWERS:
            raise ApiError(
                503, f"{MAX_VIEWERS} pages are watching already; close one", "too_many_viewers", retry_after=10
            )
        self._viewers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._refresh())
        try:
            yield
        finally:
            self._viewers -= 1
            if not self._viewers and self._task is not None:
                task, self._task = self._task, None
                task.cancel()
                await asyncio.wait([task])

    async def _refresh(self) -> None:
        while True:
            self._dirty.clear()
            text = self.compute()
            if text != self.text or not self.version:
                async with self._fresh:
                    self.text = text
                    self.version += 1
                    self._fresh.notify_all()
            try:
                async with asyncio.timeout(self._idle_s):
                    await self._dirty.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(self._soon_s)
