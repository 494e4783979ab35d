"""Whom a run leaves out of its next ring after the last one broke. Decides with `suspects`; asks only who answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from swarm.ring.opening import StagePlan
from swarm.run.exclusions import Exclusions
from swarm.run.routing import RunRoutes
from swarm.run.suspects import Trouble, accusers, next_suspect, without_progress_s


class Blame:
    """The troubles of one run. Cancel what it still asks with `close`.

    absent   who is left out; this adds to it
    routes   which stages answer now, and who can be done without
    """

    def __init__(self, absent: Exclusions, routes: RunRoutes) -> None:
        self._absent, self._routes = absent, routes
        self._history: list[Trouble] = []
        self._asking: set[asyncio.Task[None]] = set()

    def can_do_without(self, node: bytes) -> bool:
        """Whether there is a route without this node and without those left out now."""
        return self._routes.exist(self._absent.now(time.monotonic()) | {node})

    async def nobody_named(self, stages: Sequence[StagePlan], progress: int) -> frozenset[bytes]:
        """Nobody says who failed: those that do not answer, or else the next suspect. Who is left out from now on."""
        lost = await self._routes.unreachable(stages)
        now, route = time.monotonic(), tuple(stage.node for stage in stages)
        suspect = None if lost else next_suspect(self._history, route, progress, self.can_do_without, now)
        self._history.append(Trouble(now, route, progress, tried=suspect or b""))
        lost = lost if suspect is None else frozenset({suspect})
        for node in lost:
            self._absent.leave_out(node, now, briefly=False)
        return lost

    async def named(self, stages: Sequence[StagePlan], node: bytes, progress: int, told: bool, briefly: bool) -> None:
        """`node` failed. Where one before it in the ring says so (`told`), several such words count against it."""
        now = time.monotonic()
        self._absent.leave_out(node, now, briefly)
        accused = node if told and node != stages[0].node else b""
        before = any(trouble.accused not in (b"", node) for trouble in self._history)
        self._history.append(Trouble(now, tuple(stage.node for stage in stages), progress, accused))
        if not accused:
            return
        asking = asyncio.create_task(self._ask(len(self._history) - 1, stages))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        if before:  # the first word is taken without asking: most are true, and recovering does not wait
            await asking
            for accuser in sorted(accusers(self._history, now) & {stage.node for stage in stages}):
                if self.can_do_without(accuser):
                    self._absent.leave_out(accuser, now, briefly=False)

    def crowded(self, stages: Sequence[StagePlan], progress: int) -> None:
        """A stage had no room for what was in flight. That is nobody's fault, but may not go on for ever."""
        self._history.append(Trouble(time.monotonic(), tuple(stage.node for stage in stages), progress))

    def stuck_s(self, progress: int) -> float:
        """Seconds since the first trouble without any progress between it and now."""
        return without_progress_s(self._history, progress, time.monotonic())

    def times(self, progress: int) -> int:
        """How often the ring broke since then."""
        return sum(trouble.progress >= progress for trouble in self._history)

    def close(self) -> None:
        """The run is over."""
        for task in self._asking:
            task.cancel()

    async def _ask(self, number: int, stages: Sequence[StagePlan]) -> None:
        trouble = self._history[number]
        if not await self._routes.unreachable([stage for stage in stages if stage.node == trouble.accused]):
            self._history[number] = replace(trouble, answered=True)
