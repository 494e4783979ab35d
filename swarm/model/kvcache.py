"""Keys and values by slot: sessions of fixed size out of one budget.

A session's slots are laid out as rows.py says: scratch slots first, committed positions behind them. Nothing here
knows of chains, trees or rollback; a slot is overwritten when a row names it. Attention reads only the range of slots
that some row of the job sees, so a requester that hands out scratch slots from the highest one down keeps that range
short.
"""

from __future__ import annotations

import functools
import math
import mmap
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.base.errors import BusyError, ModelError
from swarm.model.gpu import Gpu, out_of_memory
from swarm.model.linear.pooled import PoolStore
from swarm.model.linear.scan import ScanStore
from swarm.model.linear.shapes import ConvShape, PoolShape, ScanShape, StateShape
from swarm.model.linear.store import ConvStore, RuleStore, Store
from swarm.model.rows import Commits, Layout

MAPPED_BYTES = 1 << 20
"""Stores from this size on are pages of their own."""

SPARE = 1
"""Slots behind a session's own, that nothing ever sees: rows that only fill a frame up are written there."""

EIGHTH = 8
"""On a GPU sessions get slots in steps of an eighth of the power of two below: few sizes, at most an eighth unused."""
LEAST_SLOTS = 512


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
    gpu: Gpu | None

    @property
    def kv_shapes(self) -> Sequence[KVShape]: ...


class Seat:
    """The memory of one session's keys and values: `slots` of them and the spare ones, in every layer.

    layers[i]: keys [heads, slots + SPARE, dim] and values [heads, slots + SPARE, value_dim]; indices[i]: an index's
    keys [slots + SPARE, width], None where there is none. On a GPU a seat outlives its session and serves the next
    one, and so do the graphs that address it. users: sessions that sit in it or are to copy from it. gone: its memory
    was given up.
    """

    def __init__(self, shapes: Sequence[KVShape], slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.slots, self.users, self.gone = slots, 1, False
        self.stores: list[torch.Tensor] = []
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.indices: list[torch.Tensor | None] = []
        for shape, count in _runs(shapes):
            self.indices += self._index_stores(shape, count, dtype, device)
            if shape.latent:
                store = _zeros((count, 1, shape.heads, slots + SPARE, shape.dim), dtype, device)
                self.stores.append(store)
                self.layers += [(store[i, 0], store[i, 0, ..., : shape.latent]) for i in range(count)]
                continue
            widths = [shape.dim] if shape.value_dim in (0, shape.dim) else [shape.dim, shape.value_dim]
            each = 2 // len(widths)
            stores = [_zeros((count, each, shape.heads, slots + SPARE, n), dtype, device) for n in widths]
            self.stores += stores
            self.layers += [(stores[0][i, 0], stores[-1][i, -1]) for i in range(count)]

    def _index_stores(
        self, shape: KVShape, count: int, dtype: torch.dtype, device: torch.device
    ) -> Sequence[torch.Tensor | None]:
        if not shape.index:
            return [None] * count
        store = _zeros((count, 1, 1, self.slots + SPARE, shape.index), dtype, device)
        self.stores.append(store)
        return [store[i, 0, 0] for i in range(count)]

    @functools.cached_property
    def addresses(self) -> NDArray[np.int64]:
        """`addresses_of` the layers, which are never moved."""
        return addresses_of(self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(store.nbytes for store in self.stores)

    def empty(self) -> None:
        """Forget what was there: another session's rows are nobody's business, and no NaN of theirs may stay."""
        for store in self.stores:
            store.zero_()

    def give_up(self) -> None:
        self.gone, self.stores, self.layers, self.indices = True, [], [], []
        self.__dict__.pop("addresses", None)


def addresses_of(layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> NDArray[np.int64]:
    """int64 [layers, 6]: where each layer's keys lie and where its values; numbers from one head of keys to the next,
    of values; from one slot of keys to the next, of values."""
    found = [(k.data_ptr(), v.data_ptr(), *(x.stride(axis) for axis in (0, 1) for x in (k, v))) for k, v in layers]
    return np.array(found, np.int64).reshape(-1, 6)


class KVPool:
    """The key/value memory of a node. `used_bytes` counts whole sessions; a session never grows.

    On a GPU memory is taken when a session computes first, by the thread that computes, and kept for the next ones.
    """

    def __init__(self, block: HoldsLayers, budget_bytes: int) -> None:
        self.block = block
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._free: dict[tuple[int, int, int], list[Seat]] = {}
        self._lock = threading.Lock()  # sessions are closed by another thread than the one that computes

    @property
    def last(self) -> int:
        """One past the last layer that it is for."""
        return self.block.last

    @property
    def free_bytes(self) -> int:
        """What is left of the budget."""
        return max(0, self.budget_bytes - self.used_bytes)

    def slots(self, layout: Layout) -> int:
        """Slots that a session gets: its own, on a GPU rounded up."""
        if self.block.gpu is None:
            return layout.slots
        step = max(LEAST_SLOTS, 1 << max(0, (layout.slots - 1).bit_length() - 1)) // EIGHTH
        return max(LEAST_SLOTS, -(-layout.slots // step) * step)

    def session_bytes(self, layout: Layout, first: int, last: int) -> int:
        """Bytes that a session over layers [first, last) takes."""
        shapes = self._shapes(first, last)
        size = self.block.dtype.itemsize
        states = sum(state.bytes(layout.scratch, layout.context, size) for s in shapes for state in s.states)
        return sum(s.numbers for s in shapes) * (self.slots(layout) + SPARE) * size + states

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

    def hold(self) -> None:
        """On a GPU, take the whole budget from the device now, so that other processes that look see it taken. Takes
        less, and lowers the budget to it, where others were quicker."""
        if self.block.gpu is None or not self.block.gpu.cuda.has_graphs:
            return  # what mps computes in is the machine's memory, and others look at that
        while self.budget_bytes > 0:
            try:
                torch.empty(self.budget_bytes, dtype=torch.uint8, device=self.block.device)  # torch keeps what is freed
                return
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self.budget_bytes //= 2

    def seat(self, shapes: Sequence[KVShape], slots: int, first: int) -> Seat:
        """Memory for a session, all zeros. Raises BusyError where the device has none."""
        key = (first, len(shapes), slots)
        with self._lock:
            kept = self._free.get(key)
            seat = kept.pop() if kept else None
        if seat is not None:
            seat.users = 1
            seat.empty()
            return seat
        self._give_up(self.budget_bytes)
        try:
            return Seat(shapes, slots, self.block.dtype, self.block.device)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            self.give_up_free()
        try:
            return Seat(shapes, slots, self.block.dtype, self.block.device)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise BusyError(
                f"busy: the device has no memory for a session of {slots} slots, though {self.budget_bytes >> 20} MiB "
                "were meant for sessions: another program took them; try later"
            ) from error

    def leave(self, seat: Seat, first: int) -> None:
        """One user less; a seat without any is kept for the next session on a GPU."""
        with self._lock:
            seat.users -= 1
            if seat.users == 0 and self.block.gpu is not None:
                self._free.setdefault((first, len(seat.layers), seat.slots), []).append(seat)

    def give_up_free(self) -> None:
        """Let go of all seats that nobody sits in."""
        self._give_up(0)

    def _give_up(self, most: int) -> None:
        """Let go of free seats, the oldest of a size first, until they and the open sessions take `most` bytes."""
        with self._lock:
            kept = self.used_bytes + sum(seat.nbytes for seats in self._free.values() for seat in seats)
            for seats in self._free.values():
                while seats and kept > most:
                    kept -= seats[0].nbytes
                    seats.pop(0).give_up()

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
        self._shapes = shapes
        self._seat: Seat | None = None
        self._states: list[tuple[Store, ...]] = []
        self._later: Callable[[], None] | None = None
        self._borrowed: tuple[KVPool, Seat] | None = None
        if pool.block.gpu is None:
            self.prepare()

    def prepare(self) -> None:
        """Take the memory, once, in the thread that computes. Raises BusyError where there is none."""
        pool = self._pool
        if pool is None or self._seat is not None:
            return
        block = pool.block
        seat = pool.seat(self._shapes, pool.slots(self.layout), self.first)
        try:
            self._states = [
                tuple(_state(state, self.layout, block.device, block.dtype) for state in shape.states)
                for shape in self._shapes
            ]
        except BaseException:
            pool.leave(seat, self.first)
            raise
        self._seat = seat
        if self._later is not None:
            self._later()
        self._give_back_borrowed()

    @property
    def seat(self) -> Seat:
        """Where the session's memory lies. Raises ValueError before `prepare` and after `close`."""
        if self._seat is None:
            raise ValueError("a session that has no memory yet, or no more")
        return self._seat

    def index(self, layer: int) -> torch.Tensor:
        """Index keys [slots + SPARE, width] of a layer that has them; written in place."""
        found = self.seat.indices[layer - self.first]
        if found is None:
            raise ModelError(f"layer {layer} asked for index keys that its trial did not show; load the model again")
        return found

    def has_index(self, layer: int) -> bool:
        """Does a layer keep index keys?"""
        return self._shapes[layer - self.first].index > 0

    @property
    def indexed(self) -> bool:
        """Does any layer keep index keys?"""
        return any(shape.index for shape in self._shapes)

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(keys, values) of a layer of the model; written in place."""
        return self.seat.layers[layer - self.first]

    def addresses(self, layers: range) -> NDArray[np.int64]:
        """`Seat.addresses` of some of the session's layers."""
        return self.seat.addresses[layers.start - self.first : layers.stop - self.first]

    @property
    def recurrent(self) -> bool:
        """Does a layer keep a state?"""
        return any(shape.states for shape in self._shapes)

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

    def scan(self, layer: int) -> ScanStore:
        """Entries and states of a layer's scan."""
        return next(state for state in self._states[layer - self.first] if isinstance(state, ScanStore))

    def pool(self, layer: int) -> PoolStore:
        """Entries of a layer that stand for many positions."""
        return next(state for state in self._states[layer - self.first] if isinstance(state, PoolStore))

    def begin_from(self, other: SessionKV, keep: int) -> bool:
        """Take over the first `keep` positions of another session over the same layers. False, and nothing is changed,
        where that one has folded positions behind them into its states already, or never computed.

        A session that has no memory yet copies when it gets it; until then the other's is not given to anybody else.
        """
        if other._seat is None or other._pool is None or keep < other.floor:
            return False
        copy = partial(self._copy, other._seat, other._states, other.layout.scratch, keep)
        if self._seat is not None:
            copy()
            return True
        other._seat.users += 1
        self._later, self._borrowed = copy, (other._pool, other._seat)
        return True

    def _copy(self, seat: Seat, states: Sequence[tuple[Any, ...]], theirs: int, keep: int) -> None:
        mine = self.layout.scratch
        for own_pair, given_pair in zip(self.seat.layers, seat.layers, strict=True):
            for own, given in zip(own_pair, given_pair, strict=True):
                own[:, mine : mine + keep] = given[:, theirs : theirs + keep]
        for kept, base in zip(self.seat.indices, seat.indices, strict=True):
            if kept is not None and base is not None:
                kept[mine : mine + keep] = base[theirs : theirs + keep]
        for own_states, given_states in zip(self._states, states, strict=True):
            for state, given_state in zip(own_states, given_states, strict=True):
                state.begin_from(given_state, keep)

    def _give_back_borrowed(self) -> None:
        borrowed, self._borrowed, self._later = self._borrowed, None, None
        if borrowed is not None:
            pool, seat = borrowed
            pool.leave(seat, self.first)

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
        stores = self.seat.stores
        device = stores[0].device
        source = torch.from_numpy(commits.slot.astype(np.int64)).to(device)
        target = torch.from_numpy(commits.position.astype(np.int64) + self.layout.scratch).to(device)
        for store in stores:
            store.index_copy_(3, target, store.index_select(3, source))

    def close(self) -> None:
        """Give the memory back. Twice is once."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        pool.used_bytes -= self.nbytes
        self._give_back_borrowed()
        seat, self._seat, self._states = self._seat, None, []
        if seat is not None:
            pool.leave(seat, self.first)

    @property
    def closed(self) -> bool:
        return self._pool is None


def _state(shape: StateShape, layout: Layout, device: torch.device, dtype: torch.dtype) -> Store:
    if isinstance(shape, ConvShape):
        return ConvStore(shape, layout, device, dtype)
    if isinstance(shape, PoolShape):
        return PoolStore(shape, layout, device, dtype)
    if isinstance(shape, ScanShape):
        return ScanStore(shape, layout, device)
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
