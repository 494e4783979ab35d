"""What a stage keeps by slot beside keys and values: the hidden rows that it passed on, and token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.model.rows import Commits, Layout, Rows
from swarm.model.token_counts import TokenCounts


class SentRows:
    """The hidden rows that a stage passed on, by slot, so that a replacement of the next stage can be replayed.

    Addressed like the KV cache, and moved by the same commits; a bounded run keeps them all.
    """

    def __init__(self, layout: Layout, hidden_size: int, dtype: torch.dtype) -> None:
        self._scratch = layout.scratch
        self._rows = torch.empty(layout.slots, hidden_size, dtype=dtype)
        self._tokens = np.full(layout.slots, -1, np.int32)

    @staticmethod
    def size_bytes(layout: Layout, hidden_size: int, dtype: torch.dtype) -> int:
        """Bytes of memory that the rows of a session take."""
        return layout.slots * hidden_size * dtype.itemsize

    def commit(self, commits: Commits) -> None:
        """Copy scratch rows to the positions that they became."""
        if len(commits):
            to = torch.from_numpy(commits.position.astype(np.int64)) + self._scratch
            self._rows[to] = self._rows[torch.from_numpy(commits.slot.astype(np.int64))]
            self._tokens[commits.position.astype(np.int64) + self._scratch] = self._tokens[commits.slot]

    def write(self, rows: Rows, hidden: torch.Tensor) -> None:
        """Keep `hidden` [n, hidden] under the slots of `rows`."""
        self._rows[torch.from_numpy(rows.slot.astype(np.int64))] = hidden.to("cpu", self._rows.dtype)
        self._tokens[rows.slot] = rows.token

    def committed(self, first: int, last: int) -> torch.Tensor:
        """Rows of the committed positions [first, last): [last - first, hidden]."""
        return self._rows[self._scratch + first : self._scratch + last]

    def tokens(self, first: int, last: int) -> list[int]:
        """Token ids of the committed positions [first, last); -1 where they do not travel."""
        return [int(token) for token in self._tokens[self._scratch + first : self._scratch + last]]

    def copy_prefix(self, other: SentRows, keep: int) -> None:
        """Take over the first `keep` positions of another session."""
        self._tokens[self._scratch : self._scratch + keep] = other.tokens(0, keep)
        self._rows[self._scratch : self._scratch + keep] = other.committed(0, keep).to(self._rows.dtype)


@dataclass
class _Counted:
    """The committed tokens of positions [first, last), counted."""

    first: int
    last: int
    counts: TokenCounts


class SlotTokens:
    """Token ids by slot, for penalties and constraints that look at what came before. Kept where asked for.

    What penalties count of the committed ones is kept from frame to frame, and counted anew where they change.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._tokens = np.full(layout.slots, -1, np.int64)
        self._positions = np.zeros(layout.scratch, np.int64)
        self._counted: dict[int, _Counted] = {}

    def commit(self, commits: Commits) -> None:
        """Copy the tokens of scratch slots to the positions that they became."""
        self._put(commits.position.astype(np.int64) + self._layout.scratch, self._tokens[commits.slot])

    def write(self, rows: Rows) -> None:
        """Note the tokens of a frame."""
        self._put(rows.slot.astype(np.int64), rows.token)
        drafted = rows.slot < self._layout.scratch
        self._positions[rows.slot[drafted]] = rows.position[drafted]

    def copy_prefix(self, other: SlotTokens, keep: int) -> None:
        """Take over the first `keep` positions of another session."""
        theirs = other._layout.scratch
        self._put(np.arange(keep) + self._layout.scratch, other._tokens[theirs : theirs + keep])

    def _put(self, slots: NDArray[np.int64], tokens: NDArray[np.integer[Any]]) -> None:
        self._tokens[slots] = tokens
        if not self._counted:
            return
        committed = slots[slots >= self._layout.scratch] - self._layout.scratch
        for counted in list(self._counted.values()):
            if ((committed >= counted.first) & (committed < counted.last)).any():
                del self._counted[counted.first]

    def _up_to(self, first: int, last: int) -> TokenCounts:
        """The committed tokens of positions [first, last), counted on from what was asked for before."""
        scratch, known = self._layout.scratch, self._counted.get(first)
        if known is not None and last < known.last:  # a row that sees less than an earlier one did
            return TokenCounts.of(self._tokens[scratch + first : scratch + last])
        if known is None:
            known = self._counted[first] = _Counted(first, first, TokenCounts())
        if last > known.last:
            known.counts = known.counts.plus(self._tokens[scratch + known.last : scratch + last])
            known.last = last
        return known.counts

    def contexts(self, rows: Rows) -> list[NDArray[np.int64]]:
        """For each wanted row, the tokens that it sees, its own included, in any order; some may come twice."""
        drafted = self._tokens[: self._layout.scratch]
        found = []
        for index in np.flatnonzero(rows.want):
            committed = self._up_to(0, int(rows.prefix[index])).ids
            own = drafted[np.unpackbits(rows.ancestors[index], bitorder="little").astype(bool)]
            found.append(np.concatenate((committed, own[own >= 0])))
        return found

    def counts(self, rows: Rows, first: int) -> list[TokenCounts]:
        """For each wanted row, the tokens at position `first` and later that it sees, its own included, and how often.
        Those that no frame brought are left out."""
        found = []
        for index in np.flatnonzero(rows.want):
            committed = self._up_to(first, max(first, int(rows.prefix[index])))
            slots = np.flatnonzero(np.unpackbits(rows.ancestors[index], bitorder="little"))
            found.append(committed.plus(self._tokens[slots[self._positions[slots] >= first]]))
        return found

    def answers(self, rows: Rows, first: int) -> list[list[int]]:
        """For each wanted row, the tokens at position `first` and later that it sees, in order, its own included.

        A token that no frame brought is -1: what follows it is nothing that was allowed.
        """
        scratch = self._layout.scratch
        found = []
        for index in np.flatnonzero(rows.want):
            committed = self._tokens[scratch + first : scratch + max(first, int(rows.prefix[index]))]
            slots = np.flatnonzero(np.unpackbits(rows.ancestors[index], bitorder="little"))
            path = slots[np.argsort(self._positions[slots], kind="stable")]
            drafted = self._tokens[path[self._positions[path] >= first]]
            found.append([*committed.tolist(), *drafted.tolist()])
        return found
