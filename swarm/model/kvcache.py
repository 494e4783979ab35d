"""Keys and values by slot: sessions of fixed size out of one budget.

A session's slots are laid out as rows.py says: scratch slots first, committed positions behind them. Nothing here
knows of chains, trees or rollback; a slot is overwritten when a row names it. Attention reads only the range of slots
that some row of the job sees, so a requester that hands out scratch slots from the highest one down keeps that range
short.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.base.errors import BusyError, ModelError
from swarm.model.linear.shapes import ConvShape, StateShape
from swarm.model.linear.store import ConvStore, RuleStore, Store
from swarm.model.rows import Commits, Layout

MAPPED_BYTES = 1 << 20
"""Stores from this size on are pages of their own."""

SPARE = 1
"""Slots behind a session's own, that nothing ever sees: rows that only fill a frame up are written there."""


@dataclass(frozen=True)
class KVShape:
    """What one layer keeps: `heads` key/value heads (0: none), and what its recurrent operators need (`states`).

    A key has `dim` values, a value `value_dim` (0: as many; multi-head latent attention has more in its keys, which end
    in a rotated part). latent: a value is no number of its own but the first so many of the key.
    index: width of an index's key beside them (0: none).
    """

    heads: int
    dim: int
    value_dim: int = 0
    states: tuple[StateShape, ...] = ()
    latent: int = 0
    index: int = 0

    @property
    def numbers(self) -> int:
        """Numbers that a slot of the layer holds."""
        return self.heads * (self.dim + (0 if self.latent else self.value_dim or self.dim)) + self.index


class HoldsLayers(Protocol):
    """What a pool must know of a block."""

    first: int
    last: int
    device: torch.device
    dtype: torch.dtype

    @property
    def kv_shapes(self) -> Sequence[KVShape]: ...


class KVPool:
    """The key/value memory of a node. `used_bytes` counts whole sessions; a session never grows."""

    def __init__(self, block: HoldsLayers, budget_bytes: int) -> None:
        self.block = block
        self.budget_bytes = budget_bytes
        self.used_bytes = 0

    @property
    def free_bytes(self) -> int:
        """What is left of the budget."""
        return max(0, self.budget_bytes - self.used_bytes)

    def session_bytes(self, layout: Layout, first: int, last: int) -> int:
        """Bytes that a session over layers [first, last) takes."""
        shapes = self._shapes(first, last)
        size = self.block.dtype.itemsize
        states = sum(state.bytes(layout.scratch, layout.context, size) for s in shapes for state in s.states)
        return sum(s.numbers for s in shapes) * (layout.slots + SPARE) * size + states

    def open(self, layout: Layout, first: int, last: int) -> SessionKV:
        """A session over layers [first, last). Raises BusyError when the budget does not hold it now."""
        need = self.session_bytes(layout, first, last)
        left = self.budget_bytes - self.used_bytes
        if need > left:
            raise BusyError(
                f"a session of {layout.slots} slots over layers {first}:{last} needs {need >> 20} MiB of key/value "
                f"memory, {max(left, 0) >> 20} of {self.budget_bytes >> 20} are free; try later or ask for less context"
            )
        session = SessionKV(self, layout, first, self._shapes(first, last), need)
        self.used_bytes += need
        return session

    def _shapes(self, first: int, last: int) -> Sequence[KVShape]:
        if not self.block.first <= first < last <= self.block.last:
            raise ValueError(f"layers {first}:{last} of a block that holds {self.block.first}:{self.block.last}")
        return self.block.kv_shapes[first - self.block.first : last - self.block.first]


class SessionKV:
    """Keys and values of one session.

    layer(i): keys [heads, slots + SPARE, dim] and values [heads, slots + SPARE, value_dim] in the block's dtype, zeros
    at first (a masked slot still takes part in the sum with weight 0, and 0 times NaN would not be 0).
    position: int64 [scratch], the position of the row that last wrote each scratch slot (for sliding windows).
    """

    def __init__(self, pool: KVPool, layout: Layout, first: int, shapes: Sequence[KVShape], nbytes: int) -> None:
        self.layout = layout
        self.first, self.last = first, first + len(shapes)
        self.nbytes = nbytes
        self.position: NDArray[np.int64] = np.zeros(layout.scratch, np.int64)
        self._pool: KVPool | None = pool
        device, dtype = pool.block.device, pool.block.dtype
        self._stores: list[torch.Tensor] = []
        self._states: list[tuple[ConvStore | RuleStore, ...]] = []
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._indices: list[torch.Tensor | None] = []
        for shape, count in _runs(shapes):
            self._indices += self._index_stores(shape, count, dtype, device)
            if shape.latent:
                store = _zeros((count, 1, shape.heads, layout.slots + SPARE, shape.dim), dtype, device)
                self._stores.append(store)
                self._layers += [(store[i, 0], store[i, 0, ..., : shape.latent]) for i in range(count)]
                continue
            widths = [shape.dim] if shape.value_dim in (0, shape.dim) else [shape.dim, shape.value_dim]
            each = 2 // len(widths)
            stores = [_zeros((count, each, shape.heads, layout.slots + SPARE, n), dtype, device) for n in widths]
            self._stores += stores
            self._layers += [(stores[0][i, 0], stores[-1][i, -1]) for i in range(count)]
        self._states += [tuple(_state(state, layout, device, dtype) for state in shape.states) for shape in shapes]

    def _index_stores(
        self, shape: KVShape, count: int, dtype: torch.dtype, device: torch.device
    ) -> Sequence[torch.Tensor | None]:
        if not shape.index:
            return [None] * count
        store = _zeros((count, 1, 1, self.layout.slots + SPARE, shape.index), dtype, device)
        self._stores.append(store)
        return [store[i, 0, 0] for i in range(count)]

    def index(self, layer: int) -> torch.Tensor:
        """Index keys [slots + SPARE, width] of a layer that has them; written in place."""
        found = self._indices[layer - self.first]
        if found is None:
            raise ModelError(f"layer {layer} asked for index keys that its trial did not show; load the model again")
        return found

    def has_index(self, layer: int) -> bool:
        """Does a layer keep index keys?"""
        return self._indices[layer - self.first] is not None

    @property
    def indexed(self) -> bool:
        """Does any layer keep index keys?"""
        return any(map(self.has_index, range(self.first, self.last)))

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(keys, values) of a layer of the model; written in place."""
        return self._layers[layer - self.first]

    @property
    def recurrent(self) -> bool:
        """Does a layer keep a state?"""
        return any(self._states)

    @property
    def floor(self) -> int:
        """The session can go on behind its first n positions for every n from here up; 0 without recurrent layers."""
        return max((state.floor for states in self._states for state in states), default=0)

    def conv(self, layer: int) -> ConvStore:
        """Inputs of a layer's convolution."""
        return next(state for state in self._states[layer - self.first] if isinstance(state, ConvStore))

    def rule(self, layer: int) -> RuleStore:
        """Entries and states of a layer's rule."""
        return next(state for state in self._states[layer - self.first] if isinstance(state, RuleStore))

    def begin_from(self, other: SessionKV, keep: int) -> bool:
        """Take over the first `keep` positions of another session over the same layers. False, and nothing is changed,
        where that one has folded positions behind them into its states already."""
        if keep < other.floor:
            return False
        mine, theirs = self.layout.scratch, other.layout.scratch
        for layer in range(self.first, self.last):
            for own, given in zip(self.layer(layer), other.layer(layer), strict=True):
                own[:, mine : mine + keep] = given[:, theirs : theirs + keep]
            if self.has_index(layer):
                self.index(layer)[mine : mine + keep] = other.index(layer)[theirs : theirs + keep]
            for state, base in zip(self.states(layer), other.states(layer), strict=True):
                state.begin_from(base, keep)
        return True

    def states(self, layer: int) -> tuple[Store, ...]:
        """All that a layer's recurrent operators keep."""
        return self._states[layer - self.first]

    def commit(self, commits: Commits) -> None:
        """Copy scratch slots to the committed positions they became. Rotation follows positions, so a copy is all."""
        if not len(commits):
            return
        for states in self._states:
            for state in states:
                state.commit(commits)
        device = self._stores[0].device
        source = torch.from_numpy(commits.slot.astype(np.int64)).to(device)
        target = torch.from_numpy(commits.position.astype(np.int64) + self.layout.scratch).to(device)
        for store in self._stores:
            store.index_copy_(3, target, store.index_select(3, source))

    def close(self) -> None:
        """Give the memory back. Twice is once."""
        if self._pool is not None:
            self._pool.used_bytes -= self.nbytes
            self._pool = None
            self._stores, self._layers, self._states, self._indices = [], [], [], []

    @property
    def closed(self) -> bool:
        return self._pool is None


def _state(shape: StateShape, layout: Layout, device: torch.device, dtype: torch.dtype) -> ConvStore | RuleStore:
    if isinstance(shape, ConvShape):
        return ConvStore(shape, layout, device, dtype)
    return RuleStore(shape, layout, device)


def _runs(shapes: Sequence[KVShape]) -> list[tuple[KVShape, int]]:
    """Equal shapes in a row, counted: one store each, so that a commit is one copy for nearly every model."""
    runs: list[tuple[KVShape, int]] = []
    for shape in shapes:
        shape = replace(shape, states=())
        if runs and runs[-1][0] == shape:
            runs[-1] = (shape, runs[-1][1] + 1)
        else:
            runs.append((shape, 1))
    return runs


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU the kernel hands out the pages when they are written, so an unused context costs nothing."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    words: Any = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}[dtype.itemsize]
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < MAPPED_BYTES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.from_numpy(np.zeros(shape, words)).view(dtype)
    # From the kernel itself: calloc takes a free piece of the heap when there is one, and writes all of it.
    pages = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.from_numpy(np.frombuffer(pages, words).reshape(shape)).view(dtype)
