"""Entries that stand for many positions (DeepSeek V4): kept once for a text, made anew for drafts.

Every `rate` positions close a window, and its rows are pooled into one entry by a softmax that each number has of its
own; with overlap an entry takes half of its numbers from the window before. What a row gives to its window depends on
the row alone, so its slot keeps that: a draft that closes a window has an entry of its own path, which is made when it
is needed and forgotten with the draft. Entries of committed windows are kept for the whole text; what their rows gave
is let go behind a window, as for recurrent layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.base.errors import ModelError
from swarm.model.linear.paths import Paths
from swarm.model.linear.shapes import PoolShape, zeros
from swarm.model.linear.store import Store
from swarm.model.rows import Layout

Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""What rows gave [windows, rows of one, width], zeros where there are none, and int64 [windows], which window of the
text each is -> entries [windows, entry]."""


@dataclass(frozen=True)
class Pooled:
    """What the rows of a job may look at: entries [m, entry]; windows, int64 [m]: which of the text each is, of no row
    twice; seen, bool [n, m]."""

    entries: torch.Tensor
    windows: torch.Tensor
    seen: torch.Tensor


class PoolStore(Store):
    """given [1, slots, width]: what rows give to their windows. entries [windows, entry]: those of closed windows, of
    which the first `done` are made. pool: how, known from the first pass on."""

    def __init__(self, shape: PoolShape, layout: Layout, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(layout, device)
        self.shape = shape
        self.window, self.capacity = shape.window, shape.capacity(layout.context)
        slots = layout.scratch + self.capacity + 1
        self.given = zeros((1, slots, shape.width), dtype, device)
        self.entries = zeros((layout.context // shape.rate + 1, shape.entry), dtype, device)
        self.tensors = [self.given]
        self.done = 0
        self.pool: Pool | None = None

    @property
    def floor(self) -> int:
        return self.base + 2 * self.shape.rate if self.base else 0

    def put(self, slots: NDArray[np.int64], values: list[torch.Tensor]) -> None:
        committed = slots[slots >= self.layout.scratch]
        if len(committed):
            self.done = min(self.done, (int(committed.min()) - self.layout.scratch) // self.shape.rate)
        super().put(slots, values)

    def fold(self, until: int) -> None:
        """What goes may be a part of these windows still; all of them are closed."""
        self.close(-(-until // self.shape.rate) + 1)

    def close(self, count: int) -> None:
        """Make the first `count` entries of the text, those that are not made."""
        if count <= self.done:
            return
        if self.pool is None:
            raise ModelError("a window is closed before any row came; begin the session anew")
        windows = np.arange(self.done, count)
        reach = self.shape.reach
        places = (windows[:, None] + 1) * self.shape.rate - reach + np.arange(reach)
        slots = np.where(places < 0, -1, places + self.layout.scratch)
        self.entries[self.done : count] = self.make(windows, slots)
        self.done = count

    def make(self, windows: NDArray[np.int64], slots: NDArray[np.int64]) -> torch.Tensor:
        """Entries [m, entry] of windows [m] whose rows lie in these slots, by session, [m, reach]; -1: none."""
        wanted = slots[slots >= self.layout.scratch]
        if len(wanted) and int(wanted.min()) - self.layout.scratch < self.base:
            raise ModelError(
                f"a row wants what position {int(wanted.min()) - self.layout.scratch} gave to its window, it is kept "
                f"from {self.base} on: begin the session anew"
            )
        assert self.pool is not None
        where = torch.from_numpy(self.local(slots)).to(self.device)
        return self.pool(self.given[0, where], torch.from_numpy(windows).to(self.device)).to(self.entries.dtype)

    def begin_from(self, other: Self, keep: int) -> None:
        super().begin_from(other, keep)
        self.pool, self.done = other.pool, min(other.done, keep // self.shape.rate)
        self.entries[: self.done] = other.entries[: self.done]


def run_pool(store: PoolStore, paths: Paths, given: torch.Tensor, pool: Pool) -> Pooled:
    """Rows of one job: writes their slots, gives what they may look at. given [n, width]."""
    store.pool, rate = pool, store.shape.rate
    for segment in paths.segments:
        if segment.newest:
            store.make_room(segment.oldest, segment.newest)
        store.put(segment.slots, [given[torch.from_numpy(segment.rows).to(store.device)][None]])
    shared = paths.prefix // rate
    store.close(int(shared.max()))
    own = (paths.place + 1) // rate
    found: dict[bytes, int] = {}
    windows: list[int] = []
    slots: list[NDArray[np.int64]] = []
    uses: list[tuple[int, int]] = []
    late = np.flatnonzero(own > shared)
    if len(late):
        back = int((paths.place[late] - np.maximum(0, (shared[late] + 1) * rate - store.shape.reach)).max())
        before = paths.before(back)
    for row in late:
        line = np.concatenate([before[row][::-1], paths.slot[row : row + 1]])  # ends at the row's own position
        for window in range(int(shared[row]), int(own[row])):
            end = len(line) - int(paths.place[row] + 1 - (window + 1) * rate)
            mine = line[max(0, end - store.shape.reach) : end]
            mine = np.concatenate([np.full(store.shape.reach - len(mine), -1, np.int64), mine])  # before the text
            key = np.append(mine, window).tobytes()
            if key not in found:
                found[key] = len(windows)
                windows.append(window)
                slots.append(mine)
            uses.append((int(row), found[key]))
    count = int(shared.max())
    seen = np.zeros((len(paths.slot), count + len(windows)), np.bool_)
    seen[:, :count] = np.arange(count) < shared[:, None]
    for late_row, place in uses:
        seen[late_row, count + place] = True
    entries = store.entries[:count]
    if windows:
        entries = torch.cat([entries, store.make(np.array(windows, np.int64), np.stack(slots))])
    numbers = np.concatenate([np.arange(count), np.array(windows, np.int64)])
    return Pooled(entries, torch.from_numpy(numbers).to(store.device), torch.from_numpy(seen).to(store.device))
