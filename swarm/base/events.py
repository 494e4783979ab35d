"""What a waiting person is told. One typed stream feeds terminal, pipe, JSON lines and dashboard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """Part of a long step is done.

    `step`: "download", "load", "probe", "warm-up", "coverage", "distil", "learn". `what` names the one thing that is
    done and stays the same until `done` reaches `total`, which ends it; `detail` may change on the way.
    `done`, `total`: in `unit` ("bytes", "layers", "tokens", ...); total 0 when unknown.
    """

    step: str
    what: str
    done: int
    total: int
    unit: str = "bytes"
    detail: str = ""


@dataclass(frozen=True)
class Notice:
    """One line for people; `level` is "info" or "warning"."""

    text: str
    level: str = "info"


Event = Progress | Notice


class Report(Protocol):
    """Who is told: a terminal, a log, a dashboard. Called from any thread; must not block or raise."""

    def __call__(self, event: Event, /) -> None:
        """One more event."""


def silent(event: Event) -> None:
    """Tell nobody."""
