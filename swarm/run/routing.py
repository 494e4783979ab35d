"""Routes as a run needs them: what an engine asks of whoever knows the swarm, held to one request."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from swarm.base.errors import CoverageError
from swarm.model.constraint import Constraint
from swarm.planner.costs import Costs
from swarm.ring.connect import StageConnector, unreachable
from swarm.ring.opening import StagePlan
from swarm.run.api import RunRequest, StageInfo


class Router(Protocol):
    """Knows the members of a swarm; `swarm.client.router.Routes` does."""

    def plan(self, excluded: frozenset[bytes], private: int) -> Sequence[StagePlan]:
        """The best route without the nodes named, leaving out so many layers at either end. Raises CoverageError."""

    def costs(self, stages: Sequence[StagePlan], wire: str) -> Costs:
        """A first guess of what a route costs when hidden rows travel in the format `wire`."""

    def wire(self, request: RunRequest, stages: Sequence[StagePlan]) -> str:
        """The format of hidden rows for this request over this route."""

    def cannot_hold(self, constraint: Constraint) -> frozenset[bytes]:
        """Nodes that would refuse this constraint as tails."""

    def describe(self, plan: StagePlan, said: Mapping[str, object], compute_ms: float) -> StageInfo:
        """A stage of a run for people; `said` is what it said of itself."""


class RunRoutes:
    """The routes of one run."""

    def __init__(self, router: Router, request: RunRequest, connector: StageConnector) -> None:
        self._router, self._request, self._connector = router, request, connector

    def plan(self, excluded: frozenset[bytes]) -> Sequence[StagePlan]:
        """The best route without the nodes named, and if there is one without tails that would refuse the constraint.

        Raises CoverageError when none is left.
        """
        private, constraint = self._request.private, self._request.sampling.constraint
        if constraint is not None and not private and (unfit := self._router.cannot_hold(constraint)):
            with contextlib.suppress(CoverageError):
                return self._router.plan(excluded | unfit, private)
        return self._router.plan(excluded, private)

    def exist(self, excluded: frozenset[bytes]) -> bool:
        """Whether there is a route without the nodes named."""
        try:
            self.plan(excluded)
        except CoverageError:
            return False
        return True

    def wire(self, stages: Sequence[StagePlan]) -> str:
        """The format of hidden rows over this route."""
        return self._router.wire(self._request, stages)

    def describe(self, plan: StagePlan, said: Mapping[str, object], compute_ms: float) -> StageInfo:
        """A stage for people; `said` is what it said of itself."""
        return self._router.describe(plan, said, compute_ms)

    async def unreachable(self, stages: Sequence[StagePlan]) -> frozenset[bytes]:
        """Which of the stages do not answer now."""
        return await unreachable(self._connector, stages)
