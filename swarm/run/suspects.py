"""Who is left out when nobody knows who fails, and whom accusations fall back on: pure choices from a run's history.

A requester hears of lost stages by their neighbours' word, and a stage that hangs while its connection lives, or that
says the untruth of another, is named by nobody. So what a run lived through is kept, and judged as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

FORGET_S = 600.0
"""What happened longer ago says nothing of a node now."""
REPEATEDLY = 2
"""Different nodes accused without need, and the accuser is left out with the accused: one may be a broken link."""


@dataclass(frozen=True)
class Trouble:
    """One time that the ring broke.

    at        monotonic seconds
    route     nodes of the ring, head first
    progress  tokens and prompt positions that were settled by then
    accused   the node that was named by one before it in the ring; b"": nobody was
    answered  the accused answers the requester all the same
    tried     the node that was left out on mere suspicion
    """

    at: float
    route: tuple[bytes, ...]
    progress: int
    accused: bytes = b""
    answered: bool = False
    tried: bytes = b""


def since_progress(history: Sequence[Trouble], progress: int) -> list[Trouble]:
    """What happened since the run came as far as `progress`, oldest first."""
    return [trouble for trouble in history if trouble.progress >= progress]


def without_progress_s(history: Sequence[Trouble], progress: int, now: float) -> float:
    """Seconds since the first of the troubles in a row that brought no token between them; 0.0 without any."""
    series = since_progress(history, progress)
    return now - series[0].at if series else 0.0


def next_suspect(
    history: Sequence[Trouble], route: Sequence[bytes], progress: int, spared: Callable[[bytes], bool], now: float
) -> bytes | None:
    """Whom of `route` to do without after a loss that names nobody; None: nobody can be `spared`.

    Those come first who were not tried since the last progress, among them whoever took part in most of the troubles,
    among equals the one nearest to the tail, which alone has nobody who could tell of it. When all were tried the
    round begins again.
    """
    recent = [trouble for trouble in since_progress(history, progress) if now - trouble.at <= FORGET_S]
    tried = [trouble.tried for trouble in recent if trouble.tried]

    def order(place: int) -> tuple[int, int, int]:
        node = route[place]
        last = max((turn for turn, other in enumerate(tried, 1) if other == node), default=0)
        return last, -sum(node in trouble.route for trouble in recent), -place

    return next((route[place] for place in sorted(range(len(route)), key=order) if spared(route[place])), None)


def accusers(history: Sequence[Trouble], now: float) -> frozenset[bytes]:
    """Nodes that stood before several accused ones which answer all the same: they, or their links, are at fault."""
    blamed: dict[bytes, set[bytes]] = {}
    for trouble in history:
        if trouble.accused in trouble.route and trouble.answered and now - trouble.at <= FORGET_S:
            for node in trouble.route[: trouble.route.index(trouble.accused)]:
                blamed.setdefault(node, set()).add(trouble.accused)
    return frozenset(node for node, accused in blamed.items() if len(accused) >= REPEATEDLY)
