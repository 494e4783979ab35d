"""Who is left out of a run's routes for a while: lost nodes longer each time, busy and leaving ones briefly."""

from __future__ import annotations

from collections.abc import Iterable

BUSY_FORGET_S = 3.0
LOST_FORGET_S = 4.0
"""How long a stage that was lost is left out: doubled each time, so that one behind a short outage comes back."""
MOST_DOUBLINGS = 8


class Exclusions:
    """The nodes that one run does without. `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}
        self._strikes: dict[bytes, int] = {}

    def __bool__(self) -> bool:
        """Whether any node was ever left out."""
        return bool(self._until)

    def leave_out(self, node: bytes, now: float, briefly: bool) -> None:
        """Do without `node` from now on."""
        strikes = self._strikes[node] = self._strikes.get(node, -1) + (not briefly)
        wait = BUSY_FORGET_S if briefly else LOST_FORGET_S * 2 ** min(strikes, MOST_DOUBLINGS)
        self._until[node] = now + wait

    def now(self, now: float) -> frozenset[bytes]:
        """Those that are left out now."""
        return frozenset(node for node, until in self._until.items() if until > now)

    def ever(self, among: Iterable[bytes]) -> list[bytes]:
        """Those of `among` that were ever left out, in the order in which that happened first."""
        wanted = set(among)
        return [node for node in self._until if node in wanted]
