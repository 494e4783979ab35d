"""The one race of tries in the network: each begun when the one before it failed or has had its head start.

RFC 8305 ("happy eyeballs") races addresses so. `aiohappyeyeballs` does that for addresses that are known when it
begins, of one name; here names of one node join while others are being dialled, and the same race serves what is no
address: HTTP beside TCP, a knock and a relay beside both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from swarm.base.errors import PeerError

T = TypeVar("T")
Try: TypeAlias = Callable[[], Awaitable[T]]
"""Begins one try, which raises PeerError when it comes to nothing."""


async def staggered(
    tries: Sequence[Try[T]],
    head_start: float,
    discard: Callable[[T], None],
    *,
    later: Sequence[Awaitable[Sequence[Try[T]]]] = (),
    most: int | None = None,
    reasons: list[str] | None = None,
) -> T:
    """The first result. Raises PeerError with every reason when all tries do; other errors at once.

    head_start  seconds that a try has before the next one joins;   `most`: so many tries are begun at most
    discard     gets a result that came too late
    later       find more tries, or raise PeerError, while the first are under way
    reasons     why tries failed, for whoever stops waiting before the end
    """
    waiting, found = list(tries), [] if reasons is None else reasons
    finding = {asyncio.ensure_future(each) for each in later}
    running: set[asyncio.Future[T]] = set()
    begun = 0
    try:
        while True:
            if waiting and (most is None or begun < most):
                running.add(asyncio.ensure_future(waiting.pop(0)()))
                begun += 1
            if not running and not finding:
                raise PeerError("; ".join(found) or "there was nothing to try")
            next_one = waiting and (most is None or begun < most)
            under_way: set[asyncio.Future[Any]] = {*running, *finding}
            done, _ = await asyncio.wait(
                under_way, timeout=head_start if next_one else None, return_when=asyncio.FIRST_COMPLETED
            )
            for each in [each for each in finding if each in done]:
                finding.remove(each)
                if (why := _failure(each)) is None:
                    waiting.extend(each.result())
                else:
                    found.append(why)
            for one in [one for one in running if one in done]:
                if (why := _failure(one)) is None:
                    running.remove(one)
                    return one.result()
                running.remove(one)
                found.append(why)
    finally:
        left: list[asyncio.Future[Any]] = [*running, *finding]
        for task in left:
            task.cancel()
        await asyncio.gather(*finding, return_exceptions=True)
        for late in await asyncio.gather(*running, return_exceptions=True):
            if not isinstance(late, BaseException):
                discard(late)


def _failure(task: asyncio.Future[Any]) -> str | None:
    """Why a try came to nothing; None: it did not. Raises what is no PeerError."""
    error = task.exception()
    if error is not None and not isinstance(error, PeerError):
        raise error
    return None if error is None else str(error)
