"""Tasks that somebody owns: started beside other work, ended with their owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol, Self

log = logging.getLogger(__name__)


class TaskOwner(Protocol):
    """Whoever runs tasks for others and ends them when it ends itself."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` as a task of this owner."""


class OwnedTasks:
    """The tasks of one object. Use as `async with`: leaving cancels those that still run and waits for them.

    `apart`: whose tasks they are, where the failure of one is logged and harms nothing else. Without it, a task that
    fails ends the others and fails whoever is inside, as in an `asyncio.TaskGroup`.
    """

    def __init__(self, apart: str = "") -> None:
        self._apart = apart
        self._group = asyncio.TaskGroup()
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.cancel()
        await self._group.__aexit__(None, None, None)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` as a task of this owner."""
        task = self._group.create_task(self._guarded(work) if self._apart else work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: work.close())  # cancelled before its first step, `work` was never begun
        return task

    def cancel(self) -> None:
        """End what runs now; leaving the context waits for it."""
        for task in list(self._running):
            task.cancel()

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("a task of %s failed", self._apart)
