"""The pulse of a channel: heartbeats while it is idle, padding that keeps its road warm, the deadline of silence."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.writer import Writer

WARM_SECONDS = 0.1
"""Below the shortest retransmission timeout (200 ms), after which Linux forgets an idle window (RFC 2861)."""


class Keepalive:
    """Begins with `beat`, ends with `stop`. `silent` is called with the reason when nothing was heard for too long.

    `deaf`: set while nothing is read, when silence proves nothing.
    """

    def __init__(self, writer: Writer, limits: ChannelLimits, silent: Callable[[str], None]) -> None:
        self.deaf = False
        self._writer, self._limits, self._silent = writer, limits, silent
        self._heard_at = time.monotonic()
        self._warm_bytes: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def heard(self) -> None:
        """The other side gave a sign of life."""
        self._heard_at = time.monotonic()

    def warm(self, burst_bytes: int) -> Callable[[], None]:
        """Keep the congestion window open with padding while nothing else is sent; call the result to end it."""
        self._warm_bytes.append(burst_bytes)
        self.beat()
        done = False

        def release() -> None:
            nonlocal done
            if not done:
                done = True
                self._warm_bytes.remove(burst_bytes)

        return release

    def beat(self) -> None:
        """Look now, and again and again until `stop`."""
        if self._timer is not None:
            self._timer.cancel()
        if self._stopped:
            return
        now = time.monotonic()
        if now - self._heard_at > self._limits.silence_seconds and not self.deaf:
            self._silent(f"nothing was heard for {self._limits.silence_seconds:g} s")
            return
        interval = WARM_SECONDS if self._warm_bytes else self._limits.heartbeat_seconds
        if self._writer.idle and not self._writer.bye_sent and now - self._writer.sent_at >= interval * 0.9:
            self._writer.pad(max(self._warm_bytes, default=1))
        self._timer = asyncio.get_running_loop().call_later(interval, self.beat)

    def stop(self) -> None:
        """No beat follows."""
        self._stopped = True
        self._silent = lambda reason: None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
