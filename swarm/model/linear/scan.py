"""Mamba-1's selective scan, read along paths.

Every channel c has a state of n numbers whose decays differ and follow the row (Gu and Dao 2023, arXiv:2312.00752):

    S_i[c] = exp(A[c] dt_i[c]) S_parent[c] + dt_i[c] x_i[c] B_i,    o_i[c] = S_i[c] . C_i

What a row adds depends on the row alone, so its slot keeps dt_i, dt_i x_i and B_i. With a decay for each number of the
state, products of a row with every row before it would cost more than the scan itself; so rows are taken one by one, as
transformers takes them, each from the state of the row before it on its own path. That is another row of the pass, or
a state that is made again from the slots behind the nearest committed one: a few rows for a draft, none for a text.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import torch

from swarm.base.errors import ModelError
from swarm.model.linear.paths import Paths, Segment
from swarm.model.linear.shapes import ScanShape, entries, zeros
from swarm.model.linear.store import Store, replay_words
from swarm.model.rows import Layout

_SCAN = struct.Struct("=12q")


class ScanStore(Store):
    """What rows add to a scan's state, with two states.

    inputs [1, slots, states] (B), updates [1, slots, channels] (dt x) and steps [1, slots, channels] (dt), float32.
    state: behind committed position `base`; near: behind `at`, base <= at, which follows the text. decay: A, float32
    [channels, states], known from the first pass on.
    """

    def __init__(self, shape: ScanShape, layout: Layout, device: torch.device) -> None:
        super().__init__(layout, device)
        self.shape = shape
        slots = entries(layout.scratch, layout.context)
        self.inputs = zeros((1, slots, shape.states), torch.float32, device)
        self.updates = zeros((1, slots, shape.channels), torch.float32, device)
        self.steps = zeros((1, slots, shape.channels), torch.float32, device)
        self.tensors = [self.inputs, self.updates, self.steps]
        self.state = zeros((shape.channels, shape.states), torch.float32, device)
        self.near = zeros((shape.channels, shape.states), torch.float32, device)
        self.decay = zeros((shape.channels, shape.states), torch.float32, device)
        self.at = 0

    def approach(self, start: int, stop: int) -> None:
        """Bring `near` to committed position `start`, for rows that see committed positions up to `stop`. Raises
        ModelError when `start` lies behind what was folded, or `stop` beyond what was written."""
        if stop - self.base > self.capacity or start < self.base:
            raise ModelError(
                f"a row wants a recurrent layer's state behind position {start}, it is kept from {self.base} on: "
                "begin the session anew"
            )
        if start < self.at:
            self.rewind()
        self.near = self.follow(self.near, np.arange(self.at, start) + self.layout.scratch)
        self.at = start

    def follow(self, state: torch.Tensor, slots: np.ndarray[tuple[int], np.dtype[np.int64]]) -> torch.Tensor:
        """A state [channels, states] after the rows in these slots, by session, in this order."""
        where = self.local(slots)
        if self.lib is not None:
            after, rows = state.clone(), np.empty(2, np.int64)
            given = (0, 0, self.decay.data_ptr(), 0, 0)
            self.lib.scan(self.words(after, given, 0), replay_words(where, rows))
            return after
        for place in where.tolist():
            state = advance(state, self.decay, self.steps[0, place], self.updates[0, place], self.inputs[0, place])
        return state

    def words(self, state: torch.Tensor, given: Sequence[int], out: int) -> bytes:
        """The kernels' struct ScanCall. given: addresses of steps, updates, decay, given and wanted."""
        stores = (tensor.data_ptr() for tensor in self.tensors)
        return _SCAN.pack(self.shape.channels, self.shape.states, *given, out, state.data_ptr(), *stores)

    def fold(self, until: int) -> None:
        if self.at > until:
            self.rewind()
        line = np.arange(self.at, until) + self.layout.scratch
        self.near = self.follow(self.near, line)
        self.at = until
        self.state = self.near.clone()

    def begin_from(self, other: ScanStore, keep: int) -> None:
        super().begin_from(other, keep)
        self.lib = other.lib
        self.state, self.decay = other.state.clone(), other.decay
        if other.at <= keep:
            self.near, self.at = other.near.clone(), other.at
        else:
            self.rewind()

    def rewind(self) -> None:
        """Make the state near the text's end anew from the one behind `base`."""
        self.near, self.at = self.state.clone(), self.base


def advance(
    state: torch.Tensor, decay: torch.Tensor, step: torch.Tensor, update: torch.Tensor, given: torch.Tensor
) -> torch.Tensor:
    """One row: state and decay [channels, states], step and update [channels], given [states]."""
    return torch.exp(decay * step[:, None]) * state + update[:, None] * given[None]


def run_scan(
    store: ScanStore,
    paths: Paths,
    steps: torch.Tensor,
    updates: torch.Tensor,
    decay: torch.Tensor,
    given: torch.Tensor,
    wanted: torch.Tensor,
) -> torch.Tensor:
    """Rows of one job: writes their slots, gives float32 [n, channels].

    steps and updates [n, channels] (dt and dt x), decay [channels, states] (A), given and wanted [n, states] (B and C),
    all float32.
    """
    store.decay = decay
    out = torch.empty_like(updates)
    for segment in paths.segments:
        rows = torch.from_numpy(segment.rows).to(store.device)
        mine = steps[rows], updates[rows], given[rows]
        out[rows] = _segment(store, paths, segment, *mine, wanted[rows])
        store.put(segment.slots, [part[None] for part in (mine[2], mine[1], mine[0])])
    return out


def _segment(
    store: ScanStore,
    paths: Paths,
    segment: Segment,
    steps: torch.Tensor,
    updates: torch.Tensor,
    given: torch.Tensor,
    wanted: torch.Tensor,
) -> torch.Tensor:
    if segment.newest:
        store.make_room(segment.oldest, segment.newest)
    store.approach(segment.start, segment.stop)
    scratch = store.layout.scratch
    before: dict[bytes, torch.Tensor] = {}
    states: list[torch.Tensor] = []
    out = torch.empty_like(updates)
    for row in range(len(segment.rows)):
        inside = np.flatnonzero(segment.within[row, :row])
        if len(inside):
            state = states[inside[-1]]
        else:
            committed = segment.start + np.flatnonzero(segment.committed[row]) + scratch
            drafts = segment.low + np.flatnonzero(segment.drafts[row])
            drafts = drafts[np.argsort(paths.position[drafts], kind="stable")]
            slots = np.concatenate([committed, drafts]).astype(np.int64)
            key = slots.tobytes()
            if key not in before:
                before[key] = store.follow(store.near, slots)
            state = before[key]
        state = advance(state, store.decay, steps[row], updates[row], given[row])
        states.append(state)
        out[row] = state @ wanted[row]
    return out
