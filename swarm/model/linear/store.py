"""Where the entries of one recurrent operator lie, for one session.

Slots are those of rows.py, but of the committed positions only [base, base + CAPACITY) have one: when a text grows
beyond, the oldest are folded and the others move down.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.base.errors import ModelError
from swarm.model.linear.shapes import CAPACITY, SEGMENT, WINDOW, ConvShape, RuleShape, entries, zeros
from swarm.model.quant.native import Library
from swarm.model.rows import Commits, Layout

ROWS = struct.Struct("=9q")
"""The kernels' struct StateRows."""
_RULE = struct.Struct("=16q")


class Store(ABC):
    """What both kinds share. `tensors`: [heads, slots, ...], one slot line each."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout, self.device = layout, device
        self.capacity, self.window = min(CAPACITY, layout.context), WINDOW
        self.base = 0
        self.tensors: list[torch.Tensor] = []
        self.lib: Library | None = None
        """Kernels of fixed order, where they compute (ordered.py)."""

    @property
    def floor(self) -> int:
        """A session may go on behind its first `n` positions for any n from here up."""
        return self.base

    @abstractmethod
    def fold(self, until: int) -> None:
        """Take the entries of committed positions [base, until) into the state."""

    def local(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots by session -> slots here; what is folded, or not there (-1), becomes the slot that holds zeros."""
        committed = slots >= self.layout.scratch
        place = np.where(committed, slots - self.base, slots)
        gone = (slots < 0) | (committed & (place < self.layout.scratch))
        return np.where(gone, self.layout.scratch + self.capacity, place)

    def put(self, slots: NDArray[np.int64], values: list[torch.Tensor]) -> None:
        """Write [heads, n, ...] for n session slots."""
        here = self.local(slots)
        first = int(here[0])
        if np.array_equal(here, np.arange(first, first + len(here))):
            for tensor, value in zip(self.tensors, values, strict=True):
                tensor[:, first : first + len(here)] = value
            return
        target = torch.from_numpy(here).to(self.device)
        for tensor, value in zip(self.tensors, values, strict=True):
            tensor.index_copy_(1, target, value.to(tensor.dtype))

    def make_room(self, first: int, stop: int) -> None:
        """For committed positions [first, stop), up to SEGMENT of them, which are about to be written."""
        if stop - self.base <= self.capacity:
            return
        until = min((stop - self.window) // SEGMENT * SEGMENT, first)
        self.fold(until)
        scratch, gone = self.layout.scratch, until - self.base
        for tensor in self.tensors:
            line = tensor[:, scratch : scratch + self.capacity]
            if gone < self.capacity:
                line[:, : self.capacity - gone] = line[:, gone:].clone()
        self.base = until

    def commit(self, commits: Commits) -> None:
        """Copy scratch entries to the positions they became."""
        order = np.argsort(commits.position, kind="stable")
        for i in range(0, len(order), SEGMENT):
            part = order[i : i + SEGMENT]
            places = commits.position[part].astype(np.int64)
            self.make_room(int(places[0]), int(places[-1]) + 1)
            source = torch.from_numpy(commits.slot[part].astype(np.int64)).to(self.device)
            self.put(places + self.layout.scratch, [tensor.index_select(1, source) for tensor in self.tensors])

    def begin_from(self, other: Self, keep: int) -> None:
        """Take over the first `keep` positions of another session; `keep` is at or above its floor."""
        self.base = other.base
        count = min(keep - other.base, self.capacity, other.capacity)
        mine, theirs = self.layout.scratch, other.layout.scratch
        for own, given in zip(self.tensors, other.tensors, strict=True):
            own[:, mine : mine + count] = given[:, theirs : theirs + count]


def replay_words(slots: NDArray[np.int64], rows: NDArray[np.int64]) -> bytes:
    """The kernels' struct StateRows of no row, for entries in these slots that a state takes in. rows: int64 [2],
    kept by the caller as long as the words."""
    rows[:] = 0, len(slots)
    return ROWS.pack(0, 0, -1, 0, 0, 0, 0, rows.ctypes.data, slots.ctypes.data)


class ConvStore(Store):
    """Inputs of a short convolution."""

    def __init__(self, shape: ConvShape, layout: Layout, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(layout, device)
        self.shape = shape
        self.inputs = zeros((1, entries(layout.scratch, layout.context), shape.channels), dtype, device)
        self.tensors = [self.inputs]

    @property
    def floor(self) -> int:
        return self.base + self.shape.width - 1 if self.base else 0

    def fold(self, until: int) -> None:
        """Nothing that is left sees what goes."""


class RuleStore(Store):
    """Keys, updates and summed decays of a rule, with two states.

    keys [key_heads, slots, key_dim], updates [value_heads, slots, value_dim] float32: position j adds the outer
    product of the two to the state. sums [value_heads, slots, decays] float64: log of the decay from `base` up to the
    slot's row, along its own path; in float64 since they are subtracted from each other and grow with the window. In
    kernels of fixed order (`lib`) it is the row's own decay, and `near_sum` is not used.

    state: behind committed position `base`. near: the same behind `at`, base <= at, which follows the text so that a
    pass reads few entries; near_sum [value_heads, decays]: the decay between the two. It is made anew from `state`
    when a session goes back behind it.
    """

    NEAR = 32
    """Committed entries that are read one by one before they are folded into `near`: folding costs as much as one row's
    pass, reading 32 entries about a third of one."""

    def __init__(self, shape: RuleShape, layout: Layout, device: torch.device) -> None:
        super().__init__(layout, device)
        self.shape = shape
        slots = entries(layout.scratch, layout.context)
        self.keys = zeros((shape.key_heads, slots, shape.key_dim), torch.float32, device)
        self.updates = zeros((shape.value_heads, slots, shape.value_dim), torch.float32, device)
        self.sums = zeros((shape.value_heads, slots, shape.decays), torch.float64, device)
        self.tensors = [self.keys, self.updates, self.sums]
        self.state = zeros(shape.state, torch.float32, device)
        self.near = zeros(shape.state, torch.float32, device)
        self.near_sum = zeros((shape.value_heads, shape.decays), torch.float64, device)
        self.at = 0

    def approach(self, start: int, stop: int, exactly: bool) -> None:
        """Bring `near` to at most NEAR positions before `start` (exactly: to it), for rows that see committed positions
        up to `stop`. Raises ModelError when `start` lies behind what was folded, or `stop` beyond what was written."""
        if stop - self.base > self.capacity:
            raise ModelError(f"a row wants a recurrent layer's state behind position {stop}, which nothing has filled")
        if start < self.base:
            raise ModelError(
                f"a row wants a recurrent layer's state behind position {start}, it is kept from {self.base} on: "
                "begin the session anew"
            )
        if start < self.at:
            self.rewind()
        if start - self.at > (0 if exactly else self.NEAR):
            self._near_to(start)

    def words(self, state: torch.Tensor, given: Sequence[int], out: int) -> bytes:
        """The kernels' struct RuleCall. given: addresses of query, key, value, decay and, where rows correct something,
        beta."""
        shape = self.shape
        sizes = shape.key_heads, shape.key_dim, shape.value_heads, shape.value_dim, shape.decays, self.keys.shape[1]
        inputs = (*given, *(0,) * (5 - len(given)))
        stores = (tensor.data_ptr() for tensor in self.tensors)
        return _RULE.pack(*sizes, *inputs, out, state.data_ptr(), *stores)

    def follow(self, lib: Library, state: torch.Tensor, first: int, last: int) -> None:
        """Take committed positions [first, last) into a state, one by one."""
        slots, rows = self.local(np.arange(first, last) + self.layout.scratch), np.empty(2, np.int64)
        lib.rule(self.words(state, (), 0), replay_words(slots, rows))

    def fold(self, until: int) -> None:
        if self.lib is not None:
            self.follow(self.lib, self.state, self.base, until)
            if self.at < until:
                self.near.copy_(self.state)
                self.at = until
            return
        if self.at < until:
            self._near_to(until)
        passed = self.sums[:, self.layout.scratch + until - self.base - 1].clone()
        if self.at == until:
            self.state.copy_(self.near)
        else:
            self._advance(self.state, torch.zeros_like(passed), passed, self.base, until)
        self.sums -= passed[:, None]
        self.near_sum -= passed
        if self.at == until:
            self.near_sum.zero_()

    def begin_from(self, other: Self, keep: int) -> None:
        super().begin_from(other, keep)
        self.lib = other.lib
        self.state.copy_(other.state)
        if other.at <= keep:
            self.near.copy_(other.near)
            self.near_sum.copy_(other.near_sum)
            self.at = other.at
        else:
            self.rewind()

    def rewind(self) -> None:
        """Make the state near the text's end anew from the one behind `base`."""
        self.near.copy_(self.state)
        self.near_sum.zero_()
        self.at = self.base

    def _near_to(self, place: int) -> None:
        passed = self.sums[:, self.layout.scratch + place - self.base - 1].clone()
        self._advance(self.near, self.near_sum, passed, self.at, place)
        self.near_sum, self.at = passed, place

    def _advance(self, state: torch.Tensor, before: torch.Tensor, after: torch.Tensor, first: int, last: int) -> None:
        """Take committed positions [first, last) into a state with summed decay `before`; then it has `after`."""
        line = slice(self.layout.scratch + first - self.base, self.layout.scratch + last - self.base)
        group = self.shape.value_heads // self.shape.key_heads
        left = torch.exp(after[:, None] - self.sums[:, line]).float()
        keys = self.keys[:, line].repeat_interleave(group, 0) if group > 1 else self.keys[:, line]
        state.mul_(torch.exp(after - before).float()[:, :, None])
        if self.shape.decays == 1:
            state.baddbmm_(keys.transpose(1, 2), self.updates[:, line] * left)
        else:
            state.baddbmm_((keys * left).transpose(1, 2), self.updates[:, line])
