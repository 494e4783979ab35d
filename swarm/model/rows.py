"""The rows of a frame: the one record that stages, caches and speculation share.

A session's KV cache is a line of slots. Slots [0, scratch) are scratch: a drafted row writes there. Slot
scratch + p holds the committed position p. The requester alone decides which slot a row writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from swarm.base.bounds import Between, by_position
from swarm.base.errors import PeerError

MAX_SCRATCH = 512
MAX_CONTEXT = 1 << 20
MAX_ROWS = 4096


@by_position
@dataclass(frozen=True)
class Layout:
    """Slots of one session: `scratch` scratch slots (a multiple of 8), then `context` committed positions."""

    scratch: Annotated[int, Between(0, MAX_SCRATCH)]
    context: Annotated[int, Between(1, MAX_CONTEXT)]

    def contradiction(self) -> str:
        """What a session cannot have, "" where it can."""
        return f"scratch slots in eights, found {self.scratch}" if self.scratch % 8 else ""

    @property
    def slots(self) -> int:
        return self.scratch + self.context


@dataclass(frozen=True)
class Rows:
    """The rows of one frame, as parallel arrays of length n.

    slot      uint32 [n]           slot that the row's key and value are written to
    position  uint32 [n]           position for the rotary embedding
    prefix    uint32 [n]           committed positions [0, prefix) are visible
    ancestors uint8 [n, scratch/8] visible scratch slots, little-endian bit order, own slot included if scratch
    token     int32 [n]            token id; -1 where the requester keeps it to itself
    want      bool [n]             the tail answers this row

    A row that is certain (prompt, or the last committed token) writes straight to slot scratch + position with
    prefix = position + 1; nothing is ever copied for it.
    """

    slot: NDArray[np.uint32]
    position: NDArray[np.uint32]
    prefix: NDArray[np.uint32]
    ancestors: NDArray[np.uint8]
    token: NDArray[np.int32]
    want: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.slot)


@dataclass(frozen=True)
class Commits:
    """Scratch slots that became committed positions; applied before the rows of the same frame.

    slot uint32 [m], position uint32 [m]: key and value of slot[i] are copied to slot scratch + position[i].
    """

    slot: NDArray[np.uint32]
    position: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.slot)


def no_commits() -> Commits:
    empty = np.zeros(0, np.uint32)
    return Commits(empty, empty)


def check_untrusted(rows: Rows, commits: Commits, layout: Layout) -> None:
    """Refuse rows or commits that reach outside the session's slots or show a row slots it may not see.

    Raises PeerError. After it, every index is safe to use.
    """
    n = len(rows)
    if not 0 < n <= MAX_ROWS:
        raise PeerError(f"a frame has 1 to {MAX_ROWS} rows, found {n}")
    shapes = (rows.position.shape, rows.prefix.shape, rows.token.shape, rows.want.shape)
    if any(shape != (n,) for shape in shapes) or rows.ancestors.shape != (n, layout.scratch // 8):
        raise PeerError("arrays of a frame differ in length")
    if int(rows.slot.max()) >= layout.slots:
        raise PeerError(f"slot {int(rows.slot.max())} in a session of {layout.slots} slots")
    if int(rows.position.max()) >= layout.context or int(rows.prefix.max()) > layout.context:
        raise PeerError(f"position beyond the session's {layout.context}")
    committed = rows.slot >= layout.scratch
    if np.any(committed & (rows.slot - layout.scratch != rows.position)):
        raise PeerError("a committed row must write to the slot of its own position")
    if len(np.unique(rows.slot)) != n:
        raise PeerError("two rows of a frame write to one slot")
    own_bit = np.zeros(n, bool)
    scratch_rows = np.flatnonzero(~committed)
    own = rows.slot[scratch_rows]
    own_bit[scratch_rows] = (rows.ancestors[scratch_rows, own >> 3] >> (own & 7).astype(np.uint8)) & 1 == 1
    if np.any(~committed & ~own_bit) or np.any(committed & (rows.prefix != rows.position + 1)):
        raise PeerError("a row must see itself")
    if len(commits.slot) != len(commits.position) or len(commits) > MAX_ROWS:
        raise PeerError("commits are malformed")
    if len(commits) and (int(commits.slot.max()) >= layout.scratch or int(commits.position.max()) >= layout.context):
        raise PeerError("a commit reaches outside the session's slots")
