"""One run's drafts by the model's own multi-token prediction head, at the tail.

The head's layer keeps keys and values by slot as every layer does, moved by the same commits. What it keeps for a row
is made of the row and of the token after it: the one that was drawn, or for a row of the prompt the next row's; the
last row of a part of a prompt waits for the next part. So drafts are for rows whose path is what was drawn, and of
these the deepest of a frame is the only one whose continuation is not known yet: it alone is drafted for, some tokens
ahead, each from the one before (its first choice), in slots that the next frame uses again.

Nothing here can change what is drawn: it comes after the drawing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.model.job import Job
from swarm.model.kvcache import KVPool, SessionKV
from swarm.model.mtp import MTPHead
from swarm.model.rows import Commits, Layout, Rows, no_commits
from swarm.model.sampler import Sampling, divided, filtered, gumbel
from swarm.ring.frame import MAX_DRAFT_LEVELS, Drafts

WIDTH = 4
"""Tokens of a level. The first is right most of the time, the fifth hardly ever."""
OWN_SLOTS = 8
assert OWN_SLOTS >= MAX_DRAFT_LEVELS - 1


@dataclass(frozen=True)
class MTPHost:
    """The head that a node serves its runs with, and memory for what it keeps of them."""

    head: MTPHead
    pool: KVPool


@dataclass(frozen=True)
class _Waiting:
    """A certain row whose next token no frame brought yet."""

    rows: Rows
    given: torch.Tensor


class MTPSession:
    """Follows one run. `close` frees its memory. Raises BusyError when there is none."""

    def __init__(self, host: MTPHost, layout: Layout, sampling: Sampling) -> None:
        head = host.head.block
        self._head, self._theirs, self._sampling = host.head, layout, sampling
        self._layout = Layout(layout.scratch + OWN_SLOTS, layout.context)
        self.kv: SessionKV = host.pool.open(self._layout, head.first, head.last)
        self._drawn = np.full(layout.slots, -1, np.int64)
        self._true = np.zeros(layout.slots, np.bool_)
        self._position = np.zeros(layout.scratch, np.int64)
        self._waiting: _Waiting | None = None

    def close(self) -> None:
        """Free what it holds."""
        self.kv.close()

    def begin_from(self, other: MTPSession, keep: int) -> bool:
        """Take over the first `keep` positions of another run. The last of them was followed by that run's token: a
        draft may be the worse for it."""
        if self._theirs.scratch != other._theirs.scratch or not self.kv.begin_from(other.kv, keep):
            return False
        first = self._theirs.scratch
        self._drawn[first : first + keep] = other._drawn[first : first + keep]
        self._true[first : first + keep] = True
        return True

    def follow(
        self, rows: Rows, commits: Commits, given: torch.Tensor, drawn: Mapping[int, int], levels: int
    ) -> Drafts | None:
        """Take in a frame that was computed, and draft.

        given: what the model's head was given for each row [n, hidden_size]; drawn: by the number of a wanted row the
        token after it; levels: how many tokens ahead to draft. None where there is nothing to draft for.
        """
        self._commit(commits)
        after = self._after(rows, drawn)
        self._note(rows, drawn)
        known = np.flatnonzero(after >= 0)
        best = self._deepest(rows, drawn) if levels else None
        waited = self._waited(rows)
        parts = ([waited.rows] if waited is not None else []) + ([_some(rows, known)] if len(known) else [])
        if not parts:
            self._keys_only(commits)
            return None
        tokens = ([int(rows.token[self._next_of(rows, waited.rows)])] if waited is not None else []) + [
            int(token) for token in after[known]
        ]
        given_rows = torch.cat(([waited.given] if waited is not None else []) + [given[torch.from_numpy(known)]])
        mine = self._mine(_joined(parts))
        at = None
        if best is not None:
            at = int(np.flatnonzero(known == best)[0]) + (waited is not None)
            mine.want[at] = True
        scores, made = self._head.forward(Job(self.kv, commits, mine, self._head.entering(tokens, given_rows)))
        self._remember(rows, after, given)
        if best is None or at is None:
            return None
        return self._ahead(best, mine, at, scores[0], made[at : at + 1], levels)

    def _ahead(self, row: int, mine: Rows, at: int, scores: torch.Tensor, given: torch.Tensor, levels: int) -> Drafts:
        """`levels` tokens ahead, from the scores and the row that the head made for `mine[at]`."""
        position, prefix = int(mine.position[at]), int(mine.prefix[at])
        sight = mine.ancestors[at : at + 1].copy()
        found: list[tuple[tuple[int, float], ...]] = []
        for level in range(1, min(levels, MAX_DRAFT_LEVELS) + 1):
            # The token drawn after the row is at position + 1: the first draft is for the one after that.
            found.append(ranked(scores, position + 1 + level, self._sampling))
            if level == levels or position + level >= self._layout.context:
                break
            slot = self._layout.scratch - OWN_SLOTS + level - 1
            sight[0, slot >> 3] |= 1 << (slot & 7)
            own = Rows(
                np.array([slot], np.uint32),
                np.array([position + level], np.uint32),
                np.array([prefix], np.uint32),
                sight.copy(),
                np.array([-1], np.int32),
                np.ones(1, np.bool_),
            )
            entering = self._head.entering([found[-1][0][0]], given)
            levels_scores, given = self._head.forward(Job(self.kv, no_commits(), own, entering))
            scores = levels_scores[0]
        width = min(len(level) for level in found)
        return Drafts(
            row,
            np.array([[token for token, _ in level[:width]] for level in found], np.int32),
            np.array([[share for _, share in level[:width]] for level in found], np.float32),
        )

    # What was drawn, by slot

    def _commit(self, commits: Commits) -> None:
        at = commits.position.astype(np.int64) + self._theirs.scratch
        self._drawn[at], self._true[at] = self._drawn[commits.slot], True

    def _note(self, rows: Rows, drawn: Mapping[int, int]) -> None:
        """Whether each row's path is what was drawn, and what was drawn after it. Parents come before children."""
        scratch = self._theirs.scratch
        for row in range(len(rows)):
            slot = int(rows.slot[row])
            self._true[slot] = slot >= scratch or self._follows(rows, row)
            self._drawn[slot] = drawn.get(row, -1)
            if slot < scratch:
                self._position[slot] = int(rows.position[row])

    def _follows(self, rows: Rows, row: int) -> bool:
        """Whether a drafted row is the token that was drawn after a row that is itself right."""
        slots = np.flatnonzero(np.unpackbits(rows.ancestors[row], bitorder="little"))
        before = slots[slots != rows.slot[row]]
        parent = self._theirs.scratch + int(rows.prefix[row]) - 1
        if len(before):
            parent = int(before[np.argmax(self._position[before])])
        return bool(self._true[parent]) and int(self._drawn[parent]) == int(rows.token[row])

    def _deepest(self, rows: Rows, drawn: Mapping[int, int]) -> int | None:
        """The wanted row that is right and farthest on."""
        right = [row for row in drawn if self._true[rows.slot[row]]]
        return max(right, key=lambda row: int(rows.position[row]), default=None)

    # Rows and the tokens after them

    def _after(self, rows: Rows, drawn: Mapping[int, int]) -> NDArray[np.int64]:
        """The token after each row; -1 where it is not known."""
        after = np.full(len(rows), -1, np.int64)
        certain = {int(rows.position[i]): i for i in range(len(rows)) if rows.slot[i] >= self._theirs.scratch}
        for row in range(len(rows)):
            if row in drawn:
                after[row] = drawn[row]
            elif rows.slot[row] >= self._theirs.scratch:
                following = certain.get(int(rows.position[row]) + 1)
                after[row] = -1 if following is None else int(rows.token[following])
        return after

    def _next_of(self, rows: Rows, waiting: Rows) -> int:
        """The certain row of a frame that comes right after a waiting one; -1: none."""
        fits = (rows.slot >= self._theirs.scratch) & (rows.position == waiting.position[0] + 1)
        found = np.flatnonzero(fits)
        return int(found[0]) if len(found) else -1

    def _waited(self, rows: Rows) -> _Waiting | None:
        """The row that waits, once its next token is known, unless this frame computes it anew."""
        waiting = self._waiting
        if waiting is None or waiting.rows.slot[0] in rows.slot:
            return None
        following = self._next_of(rows, waiting.rows)
        return waiting if following >= 0 and rows.token[following] >= 0 else None

    def _remember(self, rows: Rows, after: NDArray[np.int64], given: torch.Tensor) -> None:
        """The last certain row, where nothing follows it yet."""
        certain = np.flatnonzero((rows.slot >= self._theirs.scratch) & (after < 0))
        if len(certain):
            last = certain[-1:]
            self._waiting = _Waiting(_some(rows, last), given[torch.from_numpy(last)].clone())

    def _keys_only(self, commits: Commits) -> None:
        """Nothing to compute; what was committed has moved all the same."""
        self.kv.prepare()
        self.kv.commit(commits)

    def _mine(self, rows: Rows) -> Rows:
        """Rows as the head's own slots have them: its scratch has `OWN_SLOTS` more."""
        shift = self._layout.scratch - self._theirs.scratch
        committed = rows.slot >= self._theirs.scratch
        wider = np.zeros((len(rows), self._layout.scratch // 8), np.uint8)
        wider[:, : rows.ancestors.shape[1]] = rows.ancestors
        return Rows(
            np.where(committed, rows.slot + shift, rows.slot).astype(np.uint32),
            rows.position,
            rows.prefix,
            wider,
            np.full(len(rows), -1, np.int32),
            np.zeros(len(rows), np.bool_),
        )


def ranked(scores: torch.Tensor, position: int, sampling: Sampling) -> tuple[tuple[int, float], ...]:
    """The best tokens at `position` and the chance that each is drawn, from scores float32 [vocab]: with the noise that
    the drawing will have."""
    if not sampling.greedy:
        noise = torch.from_numpy(gumbel(sampling.seed, position, scores.shape[-1]))
        scores = filtered(divided(scores[None], sampling.temperature), sampling)[0] + noise
    shares, tokens = torch.softmax(scores, -1).topk(min(WIDTH, scores.shape[-1]))
    return tuple(zip((int(t) for t in tokens), (float(s) for s in shares), strict=True))


def _some(rows: Rows, which: NDArray[np.int64]) -> Rows:
    return Rows(
        rows.slot[which],
        rows.position[which],
        rows.prefix[which],
        rows.ancestors[which],
        rows.token[which],
        rows.want[which],
    )


def _joined(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    names = ("slot", "position", "prefix", "ancestors", "token", "want")
    return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
