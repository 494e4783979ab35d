"""A request that no route serves yet waits for nodes, as a run that lost a stage does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from swarm.base.errors import CoverageError
from swarm.run.api import WaitingForCoverage

LOOK_EVERY_S = 0.5
T = TypeVar("T")


async def patiently(plan: Callable[[], T], patience_s: float, tell: Callable[[WaitingForCoverage], None]) -> T:
    """What `plan` returns, as soon as it raises no CoverageError. Raises it when patience is over."""
    deadline = time.monotonic() + patience_s
    told = ""
    while True:
        try:
            return plan()
        except CoverageError as error:
            reason = f"{error}; {error.need}" if error.need else str(error)
            left = deadline - time.monotonic()
            if left <= 0:
                waited = f"; waited {patience_s:g} s" if patience_s else ""
                raise CoverageError(reason + waited, error.need) from None
        if reason != told:
            told = reason
            tell(WaitingForCoverage(reason, patience_s))
        await asyncio.sleep(min(LOOK_EVERY_S, left))
