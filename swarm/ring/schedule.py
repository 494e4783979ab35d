"""Which waiting frames a node computes next: a pure choice, fair between sessions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BULK_ROWS = 64
"""A frame of more rows than this is bulk (a chunk of a prompt)."""


@dataclass(frozen=True)
class Waiting:
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


def pick(waiting: Sequence[Waiting], row_budget: int) -> list[bytes]:
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
