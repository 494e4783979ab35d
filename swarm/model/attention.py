"""Attention over slots, for any transformers model that lets its attention function be replaced.

The rows of several sessions pass through a block as one sequence [1, T, hidden]. Everything in a layer works row by
row except attention; `attend` takes its place, writes the rows' keys and values into their sessions' slots and lets
each row see what its frame says. Every attention module of a block carries the block's `Attending`, which holds the
plan of the forward under way: no global, nothing threaded through models' keyword arguments.
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

from swarm.base.errors import ModelError
from swarm.model.inorder import AttentionCall, Sight, attend_in_order, attend_latent_in_order, fits
from swarm.model.kvcache import SessionKV
from swarm.model.latent import Latent, latent_of
from swarm.model.linear.paths import Paths
from swarm.model.masks import AttentionChunk, Beside, Seen, Span, note_positions, register_trial, visible_slots
from swarm.model.quant.native import Library
from swarm.model.rows import Rows
from swarm.model.tiles.kernels import RowTiles, Seeing
from swarm.model.tiles.sight import DeviceSight, sight_of
from swarm.model.warmth import Warmth

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

NAME = "swarm_slots"
"""What configs call this attention."""

_IGNORED = {"dropout", "position_ids", "use_cache", "is_causal", "output_attentions", "cache_position"}
_FEW = 64
"""Rows of a job up to which query heads are folded into rows (measured: as fast or faster up to there, and ten times
so for one row in bfloat16)."""
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


def register_attention() -> None:
    """Tell transformers of the function; needed before a block is built, harmless when repeated."""
    from transformers import AttentionInterface  # drafters attend without it

    AttentionInterface.register(NAME, attend)
    register_trial(attend)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | Seen | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    indices: Any = None,
    block_indices: Any = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """query and key [1, heads or kv heads, T, dim], value [1, kv heads, T, value dim] -> [1, T, heads, value dim].
    `attention_mask` is not used: masks come from the rows. s_aux [heads]: attention sinks, one more logit per head that
    takes a share of the softmax and adds nothing (gpt-oss). indices, block_indices: what an index picked
    (`indexed.Chosen`). Raises ModelError for an argument that would change the result unseen."""
    state, layer = getattr(module, "swarm_attending", None), getattr(module, "swarm_layer", None)
    # Flags (router logits and the like) are let pass; a number or tensor of unknown meaning is not.
    odd = [name for name, item in others.items() if name not in _IGNORED and not isinstance(item, bool | None)]
    if not isinstance(state, Attending) or not isinstance(layer, int) or odd:
        found = f"arguments {', '.join(odd)}" if odd else "an attention module of unknown kind"
        raise ModelError(f"{type(module).__name__} cannot be cut into blocks: {found}; use another architecture")
    latent = latent_of(module)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    if state.trial is not None:
        spans = _spans(module, attention_mask, sliding_window)
        rank, width = (latent.rank, latent.value) if latent else (0, value.shape[-1])
        shapes = tuple(key.shape), tuple(value.shape)
        causal = not isinstance(attention_mask, Seen) or attention_mask.causal
        state.trial.append(Call(layer, *shapes, next(iter(spans), None), bool(spans), rank, causal))
        return query.new_zeros(1, query.shape[2], query.shape[1], width), None
    if isinstance(warmth := getattr(module, "swarm_warmth", None), Warmth) and state.position is not None:
        query = (query * warmth.scales(state.position)[:, None]).to(query.dtype)
    span = state.spans.get(layer, sliding_window)
    turn = state.turn(layer)
    heads = slice(turn * key.shape[1], (turn + 1) * key.shape[1])
    if latent is not None:
        if softcap is not None:
            raise ModelError(f"{type(module).__name__} cannot be cut into blocks: a latent with capped scores")
        entry = torch.cat((key, value), -1)
        if (orders := state.orders()) and latent.in_order is not None and fits(query, entry):
            lib, ordered = orders
            ordered = ordered if indices is None else indices.looking(ordered)
            asked = AttentionCall(query, entry, None, layer, heads, scale, span, sinks=s_aux)
            return attend_latent_in_order(lib, ordered, asked, latent.in_order), None
        if (seeing := state.seeing()) and indices is None and seeing[0].fits(query, entry):
            asked = AttentionCall(query, entry, None, layer, heads, scale, span, sinks=s_aux)
            up = latent.up.weight.view(latent.heads, -1, latent.rank)
            return seeing[0].attend_latent(seeing[1], asked, up, latent.nope), None
        masks = [job.mask(span, 1) for job in state.jobs] if indices is None else indices.masks
        with state.by_slot():
            parts = [
                _attend_latent(job, layer, heads, query, entry, scale, mask, latent, s_aux)
                for job, mask in zip(state.jobs, masks, strict=True)
            ]
        return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, 1), None
    if indices is not None or (block_indices is not None and key.shape[1] != block_indices.masks[0].shape[0]):
        raise ModelError(f"{type(module).__name__} cannot be cut into blocks: an index of another kind")
    if (beside := state.beside.pop(layer, None)) is not None:
        if softcap is not None:
            raise ModelError(f"{type(module).__name__} cannot be cut into blocks: pooled entries with capped scores")
        pairs = zip(state.jobs, beside, strict=True)
        with state.by_position():
            parts = [_attend_beside(job, layer, query, key, scale, span, s_aux, one) for job, one in pairs]
        return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, 1), None
    source = state.reads.get(layer, layer)
    if (orders := state.orders()) and fits(query, key):
        lib, ordered = orders
        new_key, new_value = (key, value) if source == layer else (None, None)
        asked = AttentionCall(query, new_key, new_value, source, heads, scale, span, softcap, s_aux)
        if block_indices is None:
            return attend_in_order(lib, ordered, asked), None
        parts = [
            attend_in_order(lib, block_indices.looking(ordered, head), asked.of_head(head, key.shape[1]))
            for head in range(key.shape[1])
        ]
        return torch.cat(parts, 2), None
    if (seeing := state.seeing()) and block_indices is None and seeing[0].fits(query, key):
        new_key, new_value = (key, value) if source == layer else (None, None)
        asked = AttentionCall(query, new_key, new_value, source, heads, scale, span, softcap, s_aux)
        return seeing[0].attend(seeing[1], asked), None
    if source == layer:
        for job in state.jobs:
            _write(job, layer, heads, key, value)
    chosen = [None] * len(state.jobs) if block_indices is None else block_indices.masks
    with state.by_slot():
        parts = [
            _attend_job(job, source, heads, query, scale, span, softcap, s_aux, mask)
            for job, mask in zip(state.jobs, chosen, strict=True)
        ]
    # Rows in one piece, as transformers' own functions give them: some layers (AFMoE) make a view of them.
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, 1), None


def _spans(module: torch.nn.Module, mask: torch.Tensor | Seen | None, window: int | None) -> list[Span]:
    """Spans that are all that a mask says, among those that a layer passes or its config has: some models tell their
    window to nobody but the function that makes masks (Phi-MoE), others have windows and chunks by layer."""
    if mask is None:
        return [window]
    config = getattr(module, "config", None)
    known: list[Span] = [window, None]
    if isinstance(size := getattr(config, "sliding_window", None), int):
        known.append(size)
    if isinstance(size := getattr(config, "attention_chunk_size", None), int) and size > 0:
        known.append(AttentionChunk(size))
    return [span for span in known if isinstance(mask, Seen) and mask.fits(span)]


def attend_rows(
    jobs: Sequence[Plan], layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """`attend` for a layer of the plainest kind, without a module: all that a row's frame shows it is seen."""
    heads = slice(0, key.shape[1])
    for job in jobs:
        _write(job, layer, heads, key, value)
    parts = [_attend_job(job, layer, heads, query, scale, None, None, None) for job in jobs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _write(job: Plan, layer: int, mine: slice, *given: torch.Tensor) -> None:
    """Put keys and values of the job's rows into their slots; the key alone where a value is a part of it. `mine`: of
    which of the layer's key heads they are."""
    one = slice(job.start, job.stop)
    for kept, rows in zip(job.kv.layer(layer), given, strict=False):
        store = kept[mine]
        if isinstance(job.write, slice):
            store[:, job.write] = rows[0, :, one]
        else:
            store.index_copy_(1, job.write, rows[0, :, one])


def _attend_latent(
    job: Plan,
    layer: int,
    mine: slice,
    query: torch.Tensor,
    entry: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None,
    latent: Latent,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """As `_attend_job`, over slots that hold latents; `entry` [1, 1, T, rank + rope] of all rows."""
    _write(job, layer, mine, entry)
    entries = job.kv.layer(layer)[0][mine.start, job.low : job.high]
    return latent.attend(query[0, :, job.start : job.stop], entries, mask, scale, sinks)


def _attend_beside(
    job: Plan,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    scale: float,
    span: Span,
    sinks: torch.Tensor | None,
    found: Beside,
) -> torch.Tensor:
    """As `_attend_job`, over the slots in sight and over entries beside them; one key head, whose keys are the values
    too."""
    _write(job, layer, slice(0, 1), key)
    kept = job.kv.layer(layer)[0][0, job.low : job.high]
    asked = query[0, :, job.start : job.stop]
    near, hidden = job.mask(span, 1), ~found.seen
    near = asked.new_zeros(asked.shape[1], len(kept)) if near is None else near
    if isinstance(job, JobPlan) and job.in_order and (order := job.by_place) is not None:
        kept, near = kept[order], near[:, order]
    far = torch.zeros(hidden.shape, dtype=near.dtype, device=near.device).masked_fill_(hidden, float("-inf"))
    entries = torch.cat([kept, found.entries])
    scores = asked @ entries.T * scale + torch.cat([near, far], 1)
    if sinks is not None:
        each = sinks.to(scores.dtype)[:, None, None].expand(-1, scores.shape[1], 1)
        scores = torch.cat([scores, each], -1)
    share = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    return ((share if sinks is None else share[..., :-1]) @ entries).transpose(0, 1)[None]


def _attend_job(
    job: Plan,
    layer: int,
    mine: slice,
    query: torch.Tensor,
    scale: float,
    span: Span,
    softcap: float | None,
    sinks: torch.Tensor | None,
    chosen: torch.Tensor | None = None,
) -> torch.Tensor:
    """The job's rows of `attend` over the entries of a layer, theirs included. `mine`: which of the layer's key heads
    are those of the attention that asks; chosen: a mask [kv heads, n, slots] for each key head in the place of the
    rows' own. Returns [1, n, heads, dim]."""
    keys, values = (kept[mine] for kept in job.kv.layer(layer))
    one = slice(job.start, job.stop)
    heads, rows, dim = query.shape[1], job.stop - job.start, query.shape[3]
    shared = keys.shape[0]
    groups = heads // shared
    asked = query[0, :, one]
    if rows <= _FEW:
        # Query heads that share a key head become rows of it: keys are read once, and one row is a matrix product.
        mask = job.mask(span, groups) if chosen is None else chosen.repeat(1, groups, 1)[None]
        asked = asked.reshape(1, shared, groups * rows, dim)
        seen_k, seen_v = keys[None, :, job.low : job.high], values[None, :, job.low : job.high]
    else:
        # With many rows the mask, which folding repeats, is the large thing; key heads become a batch, seen by groups.
        mask = job.mask(span, 1) if chosen is None else chosen[:, None]
        asked = asked.reshape(shared, groups, rows, dim)
        seen_k = keys[:, None, job.low : job.high].expand(-1, groups, -1, -1)
        seen_v = values[:, None, job.low : job.high].expand(-1, groups, -1, -1)
    if softcap is None and sinks is None:
        out = torch.nn.functional.scaled_dot_product_attention(asked, seen_k, seen_v, attn_mask=mask, scale=scale)
    else:
        scores = torch.matmul(asked, seen_k.transpose(2, 3)) * scale
        scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
        scores = scores if mask is None else scores + mask
        if sinks is not None:  # heads are in order in both layouts, the rows of a head together
            each = sinks.to(scores.dtype).repeat_interleave(rows).view(*scores.shape[:-1], 1)
            scores = torch.cat([scores, each], -1)
        share = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
        out = torch.matmul(share if sinks is None else share[..., :-1], seen_v)
    return out.reshape(1, heads, rows, -1).transpose(1, 2)
