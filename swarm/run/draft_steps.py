"""The model drafter of one run, in its own thread: one step at a time, beside frames and answers."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor

from draft.base import Drafter, Expansion
from swarm.run.api import RunRequest
from swarm.run.background import in_background
from swarm.run.speculation import Speculation

log = logging.getLogger(__name__)


class DraftSteps:
    """Runs the steps that the core asks for, of a drafter prepared for `request` with what processors are left.

    `wake` is set with whatever ends.
    """

    def __init__(
        self,
        core: Speculation,
        drafter: Drafter | None,
        thread: ThreadPoolExecutor,
        request: RunRequest,
        wake: asyncio.Event,
    ) -> None:
        self._core, self._drafter, self._thread, self._wake = core, drafter, thread, wake
        self._step: asyncio.Future[list[Expansion]] | None = None
        self._begun: asyncio.Future[None] | None = None
        if drafter is not None:
            self._begun = asyncio.get_running_loop().run_in_executor(
                thread, in_background, lambda: drafter.begin(request.prompt_ids, request.sampling)
            )
            self._begun.add_done_callback(lambda _: wake.set())

    def go_on(self) -> None:
        """Start the next step if one is wanted and none is out."""
        drafter = self._drafter
        if drafter is None or self._step is not None or (self._begun is not None and not self._begun.done()):
            return
        if self._begun is not None and (error := self._begun.exception()) is not None:
            self._failed(drafter, error)
            return
        step = self._core.draft_work(time.monotonic())
        if step is None:
            return
        self._step = asyncio.get_running_loop().run_in_executor(self._thread, drafter.step, step)
        self._step.add_done_callback(lambda done: self._done(drafter, done))

    def _done(self, drafter: Drafter, step: asyncio.Future[list[Expansion]]) -> None:
        self._step = None
        if step.cancelled():  # the engine is going down
            self._drafter = None
            self._core.drafter_failed()
        elif (error := step.exception()) is not None:
            self._failed(drafter, error)
        else:
            self._core.drafted(step.result(), time.monotonic())
        self._wake.set()

    def _failed(self, drafter: Drafter, error: BaseException) -> None:
        """The run goes on without its drafter, and whoever keeps the logs learns why it became slower."""
        self._drafter = None
        self._core.drafter_failed()
        log.error("the drafter %s failed, this run goes on without it", drafter.name, exc_info=error)

    async def settle(self) -> None:
        """Let the thread finish its step: nobody reads it, but the drafter must be whole for the next run."""
        pending = [future for future in (self._step, self._begun) if future is not None and not future.done()]
        if pending:
            await asyncio.wait(pending)
