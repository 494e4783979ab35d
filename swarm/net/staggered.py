"""Several tries at one thing, each begun when the one before it failed or has had its head start."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from swarm.base.errors import PeerError

T = TypeVar("T")


async def staggered(tries: Sequence[Callable[[], Awaitable[T]]], head_start: float, discard: Callable[[T], None]) -> T:
    """The first result. Raises PeerError with every reason when all tries do; other errors at once.

    `head_start`: seconds that a try has before the next one joins. `discard` gets a result that came too late.
    """
    waiting = list(tries)
    running: set[asyncio.Future[T]] = set()
    reasons: list[str] = []
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.ensure_future(waiting.pop(0)()))
            done, running = await asyncio.wait(
                running, timeout=head_start if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for one in done:
                error = one.exception()
                if error is None:
                    running |= done - {one}
                    return one.result()
                if not isinstance(error, PeerError):
                    raise error
                reasons.append(str(error))
        raise PeerError("; ".join(reasons) or "there was nothing to try")
    finally:
        for one in running:
            one.cancel()
        for late in await asyncio.gather(*running, return_exceptions=True):
            if not isinstance(late, BaseException):
                discard(late)
