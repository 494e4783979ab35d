"""Who may run next: a bounded queue, fair between users; and how it empties when the gateway stops."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from swarm.serve.errors import ApiError

CUT_S = 12.0
"""For runs that are ended to close their rings, which may take `ring.link.CLOSE_TIMEOUT_S`."""


@dataclass
class FairQueue:
    """The decision alone. A ticket is any object; a user is an API key's name or an address.

    Next is a user with the fewest runs; among those, the one who was served longest ago.
    """

    max_running: int
    max_waiting: int
    max_waiting_per_user: int
    running: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, deque[object]] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    _turn: int = 0

    @property
    def n_running(self) -> int:
        return sum(self.running.values())

    @property
    def n_waiting(self) -> int:
        return sum(len(line) for line in self.waiting.values())

    def refusal(self, user: str) -> str | None:
        """Why `user` may not even wait: "user", "queue" or None."""
        if len(self.waiting.get(user, ())) >= self.max_waiting_per_user:
            return "user"
        return "queue" if self.n_waiting >= self.max_waiting else None

    def join(self, user: str, ticket: object) -> None:
        self.waiting.setdefault(user, deque()).append(ticket)

    def leave(self, user: str, ticket: object) -> None:
        line = self.waiting.get(user)
        if line is not None and ticket in line:
            line.remove(ticket)
            if not line:
                del self.waiting[user]
                if user not in self.running:
                    self.served.pop(user, None)

    def next(self) -> tuple[str, object] | None:
        """The user and ticket that start now, counted as running; None when nobody can."""
        if not self.waiting or self.n_running >= self.max_running:
            return None
        user = min(self.waiting, key=lambda name: (self.running.get(name, 0), self.served.get(name, 0)))
        line = self.waiting[user]
        ticket = line.popleft()
        if not line:
            del self.waiting[user]
        self._turn += 1
        self.served[user] = self._turn
        self.running[user] = self.running.get(user, 0) + 1
        return user, ticket

    def done(self, user: str) -> None:
        self.running[user] -= 1
        if not self.running[user]:
            del self.running[user]
            if user not in self.waiting:
                del self.served[user]


class RequestQueue:
    """The queue, with futures as tickets. `slot` is held for the length of one run."""

    def __init__(self, queue: FairQueue, max_wait_s: float) -> None:
        self.queue = queue
        self._max_wait_s = max_wait_s
        self._run_s = 2.0
        self._stopping: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._deadlines: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def slot(self, user: str) -> AsyncIterator[None]:
        """Wait for a turn. Raises ApiError: 429 when the user's own line is full, 503 when the whole queue is.

        And 503 when the gateway stops: before the turn at once, within it when the time that `drain` gives is over.
        """
        if self._stopping is not None:
            raise self._stopped()
        refusal = self.queue.refusal(user)
        if refusal is not None and self.queue.n_running >= self.queue.max_running:
            raise self._refused(refusal)
        loop = asyncio.get_running_loop()
        ticket: asyncio.Future[None] = loop.create_future()
        self.queue.join(user, ticket)
        self._advance()
        try:
            async with asyncio.timeout(self._max_wait_s):
                await ticket
        except TimeoutError:
            self._give_up(user, ticket)
            raise self._refused("time") from None
        except asyncio.CancelledError:
            self._give_up(user, ticket)
            raise
        started = loop.time()
        deadline = asyncio.timeout(None)
        self._idle.clear()
        try:
            async with deadline:
                self._deadlines.add(deadline)
                yield
        except TimeoutError:
            if deadline.expired():
                raise self._stopped() from None
            raise
        finally:
            self._deadlines.discard(deadline)
            self._run_s += 0.2 * (loop.time() - started - self._run_s)
            self.queue.done(user)
            self._advance()
            if not self.queue.n_running:
                self._idle.set()

    async def drain(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Refuse whoever comes or waits, let runs end for `grace_s` seconds or until `hurry`, then end the rest.

        Returns when every run has taken leave of its ring, CUT_S seconds after that at most.
        """
        self._stopping = grace_s
        for user, line in list(self.queue.waiting.items()):
            for ticket in list(line):
                self.queue.leave(user, ticket)
                assert isinstance(ticket, asyncio.Future)
                if not ticket.done():
                    ticket.set_exception(self._stopped())
        idle, hurried = asyncio.create_task(self._idle.wait()), asyncio.create_task(hurry.wait())
        try:
            await asyncio.wait((idle, hurried), timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
            for deadline in list(self._deadlines):
                deadline.reschedule(asyncio.get_running_loop().time())
            await asyncio.wait((idle,), timeout=CUT_S)
        finally:
            idle.cancel()
            hurried.cancel()

    def _stopped(self) -> ApiError:
        wait = max(1, min(60, math.ceil(self._stopping or 0.0)))
        return ApiError(503, "this gateway is stopping; try again, or another", "gateway_stopping", retry_after=wait)

    def retry_after(self) -> int:
        """Seconds until a place is likely, from the time that recent runs took; 1 to 60."""
        rounds = (self.queue.n_waiting + 1) / self.queue.max_running
        return max(1, min(60, math.ceil(rounds * self._run_s)))

    def _advance(self) -> None:
        while (turn := self.queue.next()) is not None:
            user, ticket = turn
            assert isinstance(ticket, asyncio.Future)
            if ticket.done():  # cancelled, and its task has not run since
                self.queue.done(user)
            else:
                ticket.set_result(None)

    def _give_up(self, user: str, ticket: asyncio.Future[None]) -> None:
        if ticket.done() and not ticket.cancelled():  # the turn came in the same instant
            self.queue.done(user)
            self._advance()
        else:
            self.queue.leave(user, ticket)

    def _refused(self, why: str) -> ApiError:
        queue = self.queue
        if why == "user":
            text = f"{queue.max_waiting_per_user} of your requests are waiting already; wait for some of them"
            return ApiError(429, text, "rate_limit_exceeded", retry_after=self.retry_after())
        if why == "queue":
            text = f"{queue.n_waiting} requests are waiting and the queue holds {queue.max_waiting}; try again later"
        else:
            text = f"no place on the ring came free within {self._max_wait_s:g} s; try again later"
        return ApiError(503, text, "queue_full" if why == "queue" else "queue_timeout", retry_after=self.retry_after())
