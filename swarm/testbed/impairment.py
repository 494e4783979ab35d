"""What an emulated path does to bytes: the delay proxy's schedule, pure, with the clock as an argument."""

from __future__ import annotations

import random
from dataclasses import dataclass

from swarm.base.errors import UsageError


@dataclass(frozen=True)
class Link:
    """What the path does to each direction.

    `delay_ms`: one-way delay. `jitter_ms`: up to this much more, uniform, order kept. `rate_mbit`: 0 for no limit.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    rate_mbit: float = 0.0

    def __post_init__(self) -> None:
        for name in ("delay_ms", "jitter_ms", "rate_mbit"):
            value = getattr(self, name)
            if not 0.0 <= value < 1e6:
                raise UsageError(f"{name} must be at least 0 and finite, found {value}")


class Wire:
    """The schedule of one direction of one connection: pure, the clock is an argument."""

    def __init__(self, link: Link, opened: float) -> None:
        self.link = link
        self.floor = opened
        """Nothing counts as sent before this moment (seconds): the handshake is still under way."""
        self.free_at = opened
        self.last_due = opened

    def due(self, size: int, now: float) -> float:
        """When `size` bytes that were written at `now` come out of the far end; never before earlier bytes."""
        leave = max(now, self.floor)
        if self.link.rate_mbit > 0:
            leave = max(leave, self.free_at) + size * 8e-6 / self.link.rate_mbit
            self.free_at = leave
        late = random.random() * self.link.jitter_ms if self.link.jitter_ms else 0.0
        self.last_due = max(self.last_due, leave + (self.link.delay_ms + late) * 1e-3)
        return self.last_due

    def queued_ms(self, now: float) -> float:
        """How far the rate-limited line lags behind the writer."""
        return max(0.0, self.free_at - now) * 1e3
