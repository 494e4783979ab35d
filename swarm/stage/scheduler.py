"""Which waiting frames a node computes next, and how long it waits for more: pure choices, fair between sessions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

BULK_ROWS = 64
"""A frame of more rows than this is bulk (a chunk of a prompt)."""
LINGER_SHARE = 0.25
"""Longest wait for companions, as a share of the time that a forward takes."""
LINGER_GAP_S = 0.003
"""Companions that do not come within this after the last one are not on their way now."""


@dataclass(frozen=True)
class QueuedFrame:
    """The first frame of one session's queue.

    key          the session
    rows         rows of the frame
    last_served  number of the forward that served the session last; lower is longer ago
    since        when the frame came, seconds on the monotonic clock
    """

    key: bytes
    rows: int
    last_served: int
    since: float


def pick(waiting: Sequence[QueuedFrame], row_budget: int) -> list[bytes]:
    """Sessions whose first frame goes into the next forward, at least one when any waits.

    Small frames of all sessions share a forward, the session served longest ago first, within `row_budget` rows. At
    most one bulk frame joins, so that a long prompt delays another session by one chunk and never by two; and bulk
    frames take turns by the same order, so none starves.
    """
    order = sorted(waiting, key=lambda w: (w.last_served, w.since, w.key))
    chosen: list[bytes] = []
    rows = 0
    bulk_taken = False
    for frame in order:
        bulk = frame.rows > BULK_ROWS
        if chosen and (rows + frame.rows > row_budget or (bulk and bulk_taken)):
            continue
        chosen.append(frame.key)
        rows += frame.rows
        bulk_taken = bulk_taken or bulk
    return chosen


def linger_until(waiting: Sequence[QueuedFrame], absent: Collection[int], forward_s: float) -> float:
    """Until when to leave the device idle for frames that likely come in a moment; 0.0 for not at all.

    absent     per open session without a waiting frame, the number of the forward that served it last
    forward_s  what a forward takes, in seconds

    Sessions that shared a forward come back together, milliseconds apart: each was answered by the same forward of
    the tail. A forward of few rows costs nearly as much as one of many, so the first of them waits for the rest, a
    fraction of a forward at most. Who shared with nobody waits for nobody, and who did not come back in time is not
    waited for again.
    """
    together = {w.last_served for w in waiting} - {0}
    if not any(forward in together for forward in absent):
        return 0.0
    most = LINGER_SHARE * forward_s
    return min(max(w.since for w in waiting) + min(LINGER_GAP_S, most), min(w.since for w in waiting) + most)
