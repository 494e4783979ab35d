"""What time it is, for the thin shells that hand `now` to pure decisions."""

from __future__ import annotations

import time
from typing import Protocol


class TimeSource(Protocol):
    """Two clocks: one that only counts on, and one that other machines share more or less."""

    def now(self) -> float:
        """Monotonic seconds; they begin anywhere."""

    def wall(self) -> float:
        """Unix seconds; they may jump."""


class SystemTime:
    """This machine's clocks."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wall(self) -> float:
        """Unix seconds."""
        return time.time()
