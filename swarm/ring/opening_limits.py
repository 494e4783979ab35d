"""How often a node opens kept rows, and for whom: one at a time, in pieces, at a bounded rate."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

MOST_KNOWN = 1024
MEMBER_BYTES_S = 16 << 20
STRANGERS_BYTES_S = 8 << 20
BURST_BYTES = 512 << 20
WORK_BYTES_S = 32 << 20
"""What a second of looking up and reading counts, where fewer bytes came of it: for the most part one request, and all
that are refused."""


@dataclass
class OpeningQuota:
    """Token buckets in bytes: one per member of the swarm, one that all strangers share; `now` is monotonic seconds.

    A receipt's audit is well within a burst; who asks for more waits for its bucket to fill.
    """

    burst: int = BURST_BYTES
    member_rate: int = MEMBER_BYTES_S
    strangers_rate: int = STRANGERS_BYTES_S
    _spent: OrderedDict[bytes, tuple[float, float]] = field(default_factory=OrderedDict)
    """By member (b"": strangers) how much is owed, and since when."""

    def wait_s(self, member: bytes, now: float) -> float:
        """Seconds until this member (b"": a stranger) may read again; 0 when it may now."""
        return max(0.0, (self._owed(member, now) - self.burst) / self._rate(member))

    def charge(self, member: bytes, size: int, now: float) -> None:
        """That many bytes were read for it."""
        self._spent[member] = (self._owed(member, now) + size, now)
        self._spent.move_to_end(member)
        while len(self._spent) > MOST_KNOWN:
            self._spent.popitem(last=False)

    def _owed(self, member: bytes, now: float) -> float:
        owed, since = self._spent.get(member, (0.0, now))
        return max(0.0, owed - (now - since) * self._rate(member))

    def _rate(self, member: bytes) -> int:
        return self.member_rate if member else self.strangers_rate
