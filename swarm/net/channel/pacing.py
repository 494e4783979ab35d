"""Keeping the road short: while small frames are under way, large ones do not fill the network's own queues.

Priority on a channel ends where the kernel and the routers begin: a large frame that fills a home router's buffer
delays every small frame behind it, however they were queued here. Linux tells what a connection has on the road, how
fast it is delivered and its shortest round trip; while small frames go out on the same channel, large ones keep no
more on the road than that road holds. Alone, they take all that TCP gives them.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

SMALL_SECONDS = 0.5
"""A small frame counts as under way for so long."""
RETRY_SECONDS = 0.004
QUEUE_US = 10_000
"""A round trip longer than the shortest by this much means a queue."""
SPARE_BYTES = 16 * 1024
_RATE_SAMPLES = 64


@dataclass(frozen=True)
class Road:
    """What the kernel knows of a connection: round trips in microseconds, bytes, and bytes per second."""

    rtt_us: int
    min_rtt_us: int
    outstanding: int
    rate: int


def read_road(sock: socket.socket) -> Road | None:
    """The state of a TCP connection; None where the system does not tell (not Linux, not TCP)."""
    if not hasattr(socket, "TCP_INFO") or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 168)
    except OSError:
        return None
    if len(data) < 168:
        return None
    mss, unacked, rtt = (struct.unpack_from("=I", data, at)[0] for at in (16, 24, 68))
    not_sent, min_rtt, rate = struct.unpack_from("=II8xQ", data, 144)
    return Road(rtt, min_rtt, unacked * mss + not_sent, rate)


@dataclass
class Pacer:
    """Decides whether a large frame may go on. `now` in seconds, monotonic."""

    read: Callable[[], Road | None]
    _small_at: float = float("-inf")
    _rates: deque[int] = field(default_factory=lambda: deque(maxlen=_RATE_SAMPLES))

    def sent_small(self, now: float) -> None:
        """A message that fits one record has gone out."""
        self._small_at = now

    def may_send_large(self, now: float) -> bool:
        """False while the road is full and a small frame was on it lately."""
        if now - self._small_at > SMALL_SECONDS:
            return True
        road = self.read()
        if road is None:
            return True
        self._rates.append(road.rate)
        if road.rtt_us < road.min_rtt_us + QUEUE_US:
            return True
        holds = max(self._rates) * road.min_rtt_us / 1e6
        return road.outstanding < 1.25 * holds + SPARE_BYTES
