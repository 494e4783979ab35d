"""Ping-pong-ping: one exchange that gives both ends their own round-trip times. Pure: `now_us` is an argument.

Message k of a series carries the nonce of message k - 1 back and a fresh one along, so that each end times its own
nonces and neither can answer before it was asked. With `count` rounds there are 2 * count + 2 messages; the last one
of each side carries that side's finished figures.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import struct
from dataclasses import dataclass

from swarm.base.errors import PeerError

NONCE_BYTES = 16
MAX_COUNT = 64
MAX_US = 2**32 - 1
PROBE = struct.Struct(">B8sHH16s16sII")
"""record kind, series id, message number k, last message number, echoed nonce, fresh nonce, min us, median us"""


@dataclass(frozen=True)
class PingSeries:
    """Round trips as this end saw them, and as the other end says it saw them, in microseconds.

    `id` (8 bytes) names the series on both ends.
    """

    id: bytes
    count: int
    min_us: int
    median_us: int
    peer_min_us: int
    peer_median_us: int


class PingRun:
    """One end of one series. `take_untrusted` returns the next message to send, or None after the last."""

    def __init__(self, kind: int) -> None:
        self._kind = kind
        self._samples: list[int] = []
        self._nonce = b""
        self._sent_us = 0
        self._next = 0
        self._last = 0
        self._id = b""
        self.result: PingSeries | None = None

    @property
    def id(self) -> bytes:
        return self._id

    def start(self, count: int, now_us: int) -> bytes:
        """The first message of a series of `count` rounds (1 to MAX_COUNT)."""
        self._id = secrets.token_bytes(8)
        self._last = 2 * min(max(count, 1), MAX_COUNT) + 1
        return self._message(0, bytes(NONCE_BYTES), now_us)

    def take_untrusted(self, record: bytes, now_us: int) -> bytes | None:
        """Take the peer's next message. Raises PeerError for one that does not belong to this series."""
        if len(record) != PROBE.size:
            raise PeerError(f"expected a probe of {PROBE.size} bytes, found {len(record)}")
        _, series, number, last, echo, fresh, low, median = PROBE.unpack(record)
        if number == 0 and not self._id:
            if last % 2 == 0 or not 3 <= last <= 2 * MAX_COUNT + 1:
                raise PeerError(f"expected a ping series of 1 to {MAX_COUNT} rounds, found {last} messages")
            self._id, self._last = series, last
        elif (series, number, last) != (self._id, self._next, self._last) or not secrets.compare_digest(
            echo, self._nonce
        ):
            raise PeerError("expected the next message of a ping series, found another")
        elif number < self._last:  # the last message only brings figures: both ends end with `count` samples
            self._samples.append(min(max(1, now_us - self._sent_us), MAX_US))
        answer = None if number == self._last else self._message(number + 1, fresh, now_us)
        if number >= self._last - 1:
            self.result = PingSeries(series, len(self._samples), *self._figures(), low, median)
        return answer

    def _message(self, number: int, echo: bytes, now_us: int) -> bytes:
        self._nonce, self._sent_us, self._next = secrets.token_bytes(NONCE_BYTES), now_us, number + 1
        return PROBE.pack(self._kind, self._id, number, self._last, echo, self._nonce, *self._figures())

    def _figures(self) -> tuple[int, int]:
        if not self._samples:
            return 0, 0
        return min(self._samples), int(statistics.median(self._samples))


class Pings:
    """The series of one connection, at most one of each side at a time. `seen`: the latest that the other began."""

    def __init__(self, kind: int) -> None:
        self.seen: PingSeries | None = None
        self._kind = kind
        self._own: tuple[PingRun, asyncio.Future[PingSeries]] | None = None
        self._others: PingRun | None = None

    def begin(self, count: int, now_us: int) -> tuple[asyncio.Future[PingSeries], bytes | None]:
        """Where the result of this side's series will be, and the message to send; None where one is under way."""
        if self._own is not None:
            return self._own[1], None
        run = PingRun(self._kind)
        self._own = (run, asyncio.get_running_loop().create_future())
        return self._own[1], run.start(count, now_us)

    def take_untrusted(self, record: bytes, now_us: int) -> bytes | None:
        """A message of either side's series; returns what to send. Raises PeerError for one that fits neither."""
        if self._own is not None and record[1:9] == self._own[0].id:
            run, waiting = self._own
            answer = run.take_untrusted(record, now_us)
            if run.result is not None:
                self._own = None
                waiting.set_result(run.result)
            return answer
        if self._others is None:
            self._others = PingRun(self._kind)
        answer = self._others.take_untrusted(record, now_us)
        if self._others.result is not None:
            self.seen, self._others = self._others.result, None
        return answer

    def end(self, reason: str) -> None:
        """The connection is closed."""
        if self._own is not None:
            self._own[1].set_exception(PeerError(reason))
            self._own[1].exception()  # seen, also where nobody waits any more
            self._own = None
