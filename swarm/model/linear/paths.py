"""The rows of a job as paths: which rows and slots come before each.

Attention needs to know which slots a row sees; a recurrent operator also needs their order, which is that of their
positions. All of it is the same for every layer, so it is worked out once per job, on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swarm.base.errors import PeerError
from swarm.model.linear.shapes import SEGMENT
from swarm.model.rows import Rows

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """Rows of a job that are computed together, in the order of their positions.

    rows      int64 [n]: which rows of the job
    slots     int64 [n]: where they are written; committed ones as scratch + position
    within    bool [n, n]: does row i see row j; itself included
    start     committed positions [0, start) are seen by every row and written by none
    stop      committed positions [start, stop) are seen by some row and written by none
    committed bool [n, stop - start]: does row i see position start + j
    low, drafts  bool [n, scratch - low]: does row i see scratch slot low + j, which no row of the segment writes
    parent    int64 [n]: the last slot that row i sees and no row of the segment writes; -1: only the state
    oldest, newest  the segment writes committed positions from oldest up to before newest; 0, 0: none
    """

    rows: Ints
    slots: Ints
    within: Bools
    start: int
    stop: int
    committed: Bools
    low: int
    drafts: Bools
    parent: Ints
    oldest: int
    newest: int


class Paths:
    """Of one job, whose scratch slots' positions `position` (int64 [scratch]) knows, its own rows' included."""

    def __init__(self, rows: Rows, position: NDArray[np.int64]) -> None:
        self.scratch = len(position)
        self.slot = rows.slot.astype(np.int64)
        self.place = rows.position.astype(np.int64)
        self.prefix = rows.prefix.astype(np.int64)
        self.bits = np.unpackbits(rows.ancestors, axis=1, bitorder="little").view(np.bool_)
        self.position = position.copy()
        self.final = self.slot >= self.scratch
        order = np.argsort(self.place, kind="stable")
        parts = [order[i : i + SEGMENT] for i in range(0, len(order), SEGMENT)]
        self.segments: Sequence[Segment] = [self._segment(part) for part in parts]
        self._before: dict[int, Ints] = {}
        self.steps: dict[tuple[int, int, int], object] = {}
        """What `ordered` worked out, by segment and by what stores hold."""

    def before(self, reach: int) -> Ints:
        """[n, reach]: the slot, by session, of the row that comes d + 1 positions before row i; -1: there is none."""
        if reach not in self._before:
            self._before[reach] = self._find(reach)
        return self._before[reach]

    def _find(self, reach: int) -> Ints:
        found = np.full((len(self.slot), reach), -1, np.int64)
        at = self.place[:, None] - 1 - np.arange(reach)
        known = (at >= 0) & (at < self.prefix[:, None])
        found[known] = at[known] + self.scratch
        row, slot = np.nonzero(self.bits)
        back = self.place[row] - self.position[slot] - 1
        near = (back >= 0) & (back < reach)
        found[row[near], back[near]] = slot[near]
        return found

    def _segment(self, rows: Ints) -> Segment:
        slots, final = self.slot[rows], self.final[rows]
        prefix, bits = self.prefix[rows], self.bits[rows]
        n = len(rows)
        within = np.zeros((n, n), np.bool_)
        within[:, ~final] = bits[:, slots[~final]]
        within[:, final] = self.place[rows][final] < prefix[:, None]
        if np.triu(within, 1).any():
            raise PeerError("a row sees another that does not come before it")
        drafts = bits.copy()
        drafts[:, slots[~final]] = False
        written = self.place[rows][final]
        seen = np.where(final, self.place[rows], prefix)
        if len(written):
            seen = np.minimum(seen, written.min())
        start, stop = int(seen.min()), int(seen.max())
        committed = np.arange(start, stop) < seen[:, None]
        used = np.flatnonzero(drafts.any(axis=0))
        low = int(used[0]) if len(used) else self.scratch
        parent = np.where(seen > start, seen - 1 + self.scratch, -1)
        last = np.where(drafts, self.position, -1)
        if len(used):
            best = last.argmax(axis=1)
            drafted = last[np.arange(n), best] >= 0
            parent[drafted] = best[drafted]
        oldest, newest = (int(written.min()), int(written.max()) + 1) if len(written) else (0, 0)
        return Segment(rows, slots, within, start, stop, committed, low, drafts[:, low:], parent, oldest, newest)
