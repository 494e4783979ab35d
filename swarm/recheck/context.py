"""Which rows of a stage stood in the published text: held against it slot by slot, as the frames wrote them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from swarm.model.rows import Layout
from swarm.ring.frame import Frame


class Trace:
    """Follows the slots of one session against a text.

    A row is right where its token is the text's at its position and it sees exactly the positions up to its own, each
    once and each right: what deeper layers keep of a row depends on all that the row saw when it was computed, so a
    row that saw another text stays wrong whatever is written over that text later.

    tokens  every row must have its token, as at the head, and everywhere where a penalty or a constraint looks at
            them; else most have none, and only those that do are compared
    first   of those that must, the first position: a constraint looks at the answer alone
    """

    def __init__(self, layout: Layout, text: Sequence[int], tokens: bool, first: int = 0) -> None:
        self._tokens, self._first = tokens, first
        self._scratch = layout.scratch
        self._text = np.asarray(text, np.int64)
        self._position = np.full(layout.slots, -1, np.int64)
        self._right = np.zeros(layout.slots, bool)

    def take(self, frame: Frame) -> NDArray[np.bool_]:
        """Of one frame (`check_untrusted` of this layout), in order of arrival: which of its rows are right."""
        self._commit(frame)
        rows = frame.rows
        slots, positions = rows.slot.astype(np.int64), rows.position.astype(np.int64)
        self._position[slots], self._right[slots] = positions, False
        found = np.zeros(len(rows), bool)
        for row in np.argsort(positions, kind="stable"):
            position = int(positions[row])
            if position < len(self._text) and self._fits(int(rows.token[row]), position):
                found[row] = self._right[slots[row]] = self._sees_all(frame, int(row), position)
        return found

    def _fits(self, token: int, position: int) -> bool:
        return token == int(self._text[position]) or (token < 0 and (not self._tokens or position < self._first))

    def _commit(self, frame: Frame) -> None:
        """Copies of scratch slots; one that lands elsewhere than its rotation says is wrong."""
        slot, place = frame.commits.slot.astype(np.int64), frame.commits.position.astype(np.int64)
        position, right = self._position[slot], self._right[slot]
        self._position[place + self._scratch] = position
        self._right[place + self._scratch] = right & (position == place)

    def _sees_all(self, frame: Frame, row: int, position: int) -> bool:
        rows = frame.rows
        prefix, own = int(rows.prefix[row]), int(rows.slot[row])
        seen = np.flatnonzero(np.unpackbits(rows.ancestors[row], bitorder="little"))
        if own >= self._scratch:  # a committed row: its prefix ends with itself
            return prefix == position + 1 and not len(seen) and self._leading(position)
        if prefix > position or not self._leading(prefix) or len(seen) != position + 1 - prefix:
            return False
        others = seen[seen != own]
        expected = np.arange(prefix, position)
        return bool(self._right[others].all() and np.array_equal(np.sort(self._position[others]), expected))

    def _leading(self, count: int) -> bool:
        """Whether committed positions [0, count) are right."""
        return bool(self._right[self._scratch : self._scratch + count].all())


def said_of_rows(frame: Frame) -> bytes:
    """What a frame says of its rows, for comparison between stages: where they stand and what they see.

    Tokens are left out: they do not travel beyond the head, unless a penalty needs them.
    """
    rows, commits = frame.rows, frame.commits
    arrays = (
        commits.slot, commits.position, rows.slot, rows.position, rows.prefix, rows.want, rows.ancestors,
    )  # fmt: skip
    return b"".join((frame.seq.to_bytes(8, "big"), len(rows).to_bytes(4, "big"), *(a.tobytes() for a in arrays)))
