"""How the rows of a forward attend: which slots of their sessions they write, and which they read.

Every attention module of a block carries the block's `Attending`, which holds the plan of the forward under way: no
global, nothing threaded through models' keyword arguments. `attend.py` attends by it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.model.inorder import Sight
from swarm.model.kvcache import SessionKV
from swarm.model.linear.paths import Paths
from swarm.model.masks import Beside, Seen, Span, note_positions, visible_slots
from swarm.model.quant.native import Library
from swarm.model.rows import Rows
from swarm.model.tiles.kernels import RowTiles, Seeing
from swarm.model.tiles.sight import DeviceSight, sight_of

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

_MASK_ROUND = 16
"""Masked key ranges are rounded up to this many slots: GPU kernels want aligned masks."""


class Plan(Protocol):
    """How the rows [start, stop) of a forward attend: the slots they write, the range [low, high) they read."""

    kv: SessionKV
    start: int
    low: int
    high: int

    @property
    def write(self) -> slice | torch.Tensor: ...

    @property
    def stop(self) -> int: ...

    def mask(self, span: Span, groups: int) -> torch.Tensor | None:
        """Additive [groups * rows, high - low] in the block's dtype, the rows repeated; None if all is visible."""
        ...


@dataclass
class JobPlan:
    """The plan of one job, made from its rows. in_order: also what they see by position (`order`)."""

    kv: SessionKV
    rows: Rows
    start: int
    device: torch.device
    dtype: torch.dtype
    in_order: bool = False
    write: slice | torch.Tensor = field(init=False)
    low: int = field(init=False)
    high: int = field(init=False)
    masks: dict[tuple[Span, int], torch.Tensor | None] = field(init=False, default_factory=dict)
    paths: Paths | None = field(init=False, default=None)
    order: Sight | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        rows, scratch = self.rows, self.kv.layout.scratch
        slots = rows.slot.astype(np.int64)
        note_positions(rows, self.kv)
        if self.kv.recurrent:
            self.paths = Paths(rows, self.kv.position)
        if self.in_order:
            self.order = Sight(rows, self.kv)
        first = int(slots[0])
        if np.array_equal(slots, np.arange(first, first + len(slots))):
            self.write = slice(first, first + len(slots))
        else:
            self.write = torch.from_numpy(slots).to(self.device)
        used = np.flatnonzero(rows.ancestors.any(axis=0))
        self.low = int(used[0]) * 8 if len(used) else scratch
        self.high = scratch + int(rows.prefix.max())
        if len(rows) > 1 or len(used):
            self.high = min(self.low + -(-(self.high - self.low) // _MASK_ROUND) * _MASK_ROUND, self.kv.layout.slots)

    @property
    def stop(self) -> int:
        return self.start + len(self.rows)

    def mask(self, span: Span, groups: int) -> torch.Tensor | None:
        """Additive mask [groups * n, high - low] in the block's dtype, the rows repeated `groups` times; None if all
        is visible. Made once per forward and kind of layer."""
        key = (span, groups)
        if key not in self.masks:
            self.masks[key] = self._make_mask(span, groups)
        return self.masks[key]

    def sight(self) -> DeviceSight:
        """Raises ModelError for rows that see no path."""
        return self._sight

    @functools.cached_property
    def _sight(self) -> DeviceSight:
        return sight_of(self.rows, self.kv.position, self.device)

    @functools.cached_property
    def by_place(self) -> torch.Tensor | None:
        """int64 [high - low]: which of the slots in sight come in the order of their positions, counted from `low`;
        None where they lie so."""
        scratch = self.kv.layout.scratch
        if self.low >= scratch:
            return None
        return torch.from_numpy(np.argsort(self.places(), kind="stable")).to(self.device)

    def places(self) -> NDArray[np.int64]:
        """[high - low]: the positions of the slots in sight; of those that hold nothing any."""
        scratch = self.kv.layout.scratch
        return np.concatenate([self.kv.position[self.low : scratch], np.arange(self.high - scratch)]).astype(np.int64)

    def _make_mask(self, span: Span, groups: int) -> torch.Tensor | None:
        visible = visible_slots(self.rows, self.kv, span, self.low, self.high)
        if visible.all():
            return None
        hidden = torch.from_numpy(~visible).to(self.device)
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(hidden, float("-inf")).repeat(groups, 1)


@dataclass
class Call:
    """One call of the attention function, as the trial forward at loading saw it. span: what the model's own mask
    says, or what the layer passed where there is no mask; span_known: it says that and no more; causal: no row sees
    what comes behind it."""

    layer: int
    key: tuple[int, ...]
    value: tuple[int, ...]
    span: Span
    span_known: bool
    latent: int = 0
    causal: bool = True


@dataclass(frozen=True)
class Early:
    """What a layer gives (`rows`), computed before it was asked with these rows and angles."""

    given: torch.Tensor
    angles: tuple[torch.Tensor, torch.Tensor]
    rows: torch.Tensor


class Attending:
    """What the attention modules of one block share: the jobs of the forward under way (one thread computes),
    their positions (int64 [T], on the device), how far back the rows of each layer see, and which layers read the
    entries of another one. lib: the kernels that attend in the order of positions, on a GPU `tiles`; without either
    torch's attention, whose sums depend on a row's company."""

    def __init__(self, lib: Library | None = None, tiles: RowTiles | None = None) -> None:
        self.lib, self.tiles = lib, tiles
        # Views of a block share this; a drafter of each run and a stage may forward at the same time.
        self.lock = threading.RLock()
        self.spans: dict[int, Span] = {}
        self.reads: Mapping[int, int] = {}
        self.position: torch.Tensor | None = None
        self.jobs: Sequence[Plan] = []
        self.trial: list[Call] | None = None
        self.kept: list[Any] = []
        self.asked: dict[int, int] = {}
        """How often each layer asks for attention: DiffLlama's and LongCat's twice."""
        self.turns: dict[int, int] = {}
        self.masks: list[Seen] = []
        """Those that a forward under trial made."""
        self.buffers = 0
        """Modules with a mask of their own that was looked at."""
        self.cache: Cache | None = None
        """What a model is given that computes attention itself (see cached.py)."""
        self.index_widths: dict[int, int] = {}
        self.indexed = False
        self.over_slots = 0
        """Above 0: the code that runs goes through slots itself, in the order of their positions (`exact.InOrder`)."""
        self.as_they_lie = 0
        """Above 0: it goes through slots as they lie, by torch's functions."""
        self.taken_over = False
        """Functions over slots are taken over now (`exact.InOrder`), by ones that pick the earliest of equals."""
        self.beside: dict[int, Sequence[Beside]] = {}
        """By layer, for the attention that asks next: what a compressor found for each job (see compressed.py)."""
        self.ahead = range(0)
        self.early: dict[int, Early] = {}

    def begin(self, ahead: range = range(0)) -> None:
        """Before a forward. ahead: layers that its rows go through one after the other, so that whoever computes one of
        them may compute what follows it (`early`)."""
        self.turns.clear()
        self.early.clear()
        self.ahead = ahead

    def end(self) -> None:
        """Behind a forward, whatever became of it."""
        self.begin()
        self.jobs, self.position = [], None

    def turn(self, layer: int) -> int:
        """Which attention of a layer asks now: 0, then 1, ... in a forward."""
        if self.asked.get(layer, 1) == 1:
            return 0
        turn = self.turns.get(layer, 0)
        self.turns[layer] = turn + 1
        return turn

    def alone_in(self, layers: range) -> list[tuple[Sight, int]] | None:
        """What `orders` has, where attention of these layers is no more than that: one call over its own keys and
        values, with nothing beside them, outside a trial, and no two jobs of one session."""
        usual = self.trial is None and all(
            self.reads.get(layer, layer) == layer and self.asked.get(layer, 1) == 1 and layer not in self.beside
            for layer in layers
        )
        if not usual or (orders := self.orders()) is None:
            return None
        apart = len(orders[1]) == 1 or len({id(order.kv) for order, _ in orders[1]}) == len(orders[1])
        return orders[1] if apart else None

    @contextlib.contextmanager
    def by_position(self) -> Iterator[None]:
        """While code of a class computes with slots that it was given in the order of positions."""
        self.over_slots += 1
        try:
            yield
        finally:
            self.over_slots -= 1

    @contextlib.contextmanager
    def by_slot(self) -> Iterator[None]:
        """While torch's functions compute with slots as they lie."""
        self.as_they_lie += 1
        try:
            yield
        finally:
            self.as_they_lie -= 1

    def orders(self) -> tuple[Library, list[tuple[Sight, int]]] | None:
        """The kernels that attend in order, and what they want of each job; None where one of them is not for them."""
        found = [(job.order, job.start) for job in self.jobs if isinstance(job, JobPlan) and job.order is not None]
        return (self.lib, found) if self.lib is not None and len(found) == len(self.jobs) else None

    def seeing(self) -> tuple[RowTiles, list[Seeing]] | None:
        """The same of a GPU's kernels; None too for a drafter's loop, whose rows need not be exact."""
        if self.tiles is None:
            return None
        found: list[Seeing] = [job for job in self.jobs if isinstance(job, Seeing)]
        return (self.tiles, found) if len(found) == len(self.jobs) else None
