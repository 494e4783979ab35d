"""How much of what is posted a gateway holds at once: bodies on their way in, and those of requests under way."""

from __future__ import annotations

from collections import Counter

from swarm.base.hosts import host_key
from swarm.serve.errors import ApiError

OPENED_BYTES = 200
"""What an object or an array of a body takes beside its own letters, once it is read."""


class Intake:
    """Room for `total` bytes, half of it for any one host, so that nobody fills it alone."""

    def __init__(self, total: int) -> None:
        self._total, self._share = total, total // 2
        self._held: Counter[str] = Counter()

    def of(self, address: str) -> Holding:
        """What a request from this address will hold."""
        return Holding(self, host_key(address))

    def take(self, host: str, size: int) -> None:
        """Raises ApiError 503 where there is no room left."""
        if self._held.total() + size > self._total or self._held[host] + size > self._share:
            raise ApiError(503, "too much is being sent here at once; try again", "too_many_bodies", retry_after=1)
        self._held[host] += size

    def give(self, host: str, size: int) -> None:
        """What was taken is free again."""
        self._held[host] -= size
        if self._held[host] <= 0:
            del self._held[host]


class Holding:
    """What one request holds."""

    def __init__(self, intake: Intake, host: str) -> None:
        self._intake, self._host, self._size = intake, host, 0

    def add(self, size: int) -> None:
        """Raises ApiError 503 where there is no room left."""
        self._intake.take(self._host, size)
        self._size += size

    def release(self) -> None:
        """The request is over."""
        if self._size:
            self._intake.give(self._host, self._size)
            self._size = 0
