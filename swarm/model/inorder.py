"""Attention that adds in the order of positions, so that a row's bits depend on what it sees and on nothing else.

The rows of all sessions of a forward go to one call of the kernels (native/attend.h), which writes their keys and
values to their slots and lets each row read: committed positions first, then the drafted rows on its own path, in
chunks of 64 positions counted from 0. Where a key lies does not matter, nor who else is there.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.model.kvcache import SessionKV
from swarm.model.masks import AttentionChunk, Span
from swarm.model.quant.dense import in_panels
from swarm.model.quant.native import Library
from swarm.model.rows import Rows

MOST_QUERIES = 256
"""Query heads that may share a key head."""
JOB_WORDS = 15
"""Of the kernels' struct AttendJob."""
_CALL = struct.Struct("=15q2d2f")


@dataclass
class Sight:
    """What the rows of one job see, by position: prefix int64 [n], committed positions; scratch slots from seen[i] to
    seen[i + 1] (int64 [n + 1]) of `slot` and `position`, in the order of positions."""

    rows: Rows
    kv: SessionKV
    write: NDArray[np.int64] = field(init=False)
    prefix: NDArray[np.int64] = field(init=False)
    seen: NDArray[np.int64] = field(init=False)
    slot: NDArray[np.int64] = field(init=False)
    position: NDArray[np.int64] = field(init=False)
    _low: dict[Span, NDArray[np.int64]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        rows = self.rows
        self.write = rows.slot.astype(np.int64)
        self.prefix = rows.prefix.astype(np.int64)
        row, slot = np.nonzero(np.unpackbits(rows.ancestors, axis=1, bitorder="little"))
        self._look(row, slot, self.kv.position[slot])

    def _look(self, row: NDArray[np.int64], slot: NDArray[np.int64], place: NDArray[np.int64]) -> None:
        order = np.lexsort((slot, place, row))
        self.slot, self.position = slot[order].astype(np.int64), place[order].astype(np.int64)
        self.seen = np.concatenate([[0], np.bincount(row, minlength=len(self.rows)).cumsum()]).astype(np.int64)

    def chosen(self, visible: NDArray[np.bool_], low: int) -> Sight:
        """What the rows see of it where they may look at some slots only: row i at slot low + j if visible[i, j]."""
        one = copy.copy(self)
        row, column = np.nonzero(visible)
        slot, scratch = column + low, self.kv.layout.scratch
        place, drafted = slot - scratch, slot < scratch  # a session may have no scratch slots at all
        place[drafted] = self.kv.position[slot[drafted]]
        one.prefix = np.zeros_like(self.prefix)
        one._look(row, slot, place)
        return one

    def low(self, span: Span) -> NDArray[np.int64]:
        """int64 [n]: the first position that each row sees in a layer of this span."""
        if span not in self._low:
            place = self.rows.position.astype(np.int64)
            if span is None:
                first = np.zeros_like(place)
            elif isinstance(span, AttentionChunk):
                first = place // span.size * span.size
            else:
                first = np.maximum(place - span + 1, 0)
            self._low[span] = np.ascontiguousarray(first)
        return self._low[span]

    def words(self, layer: int, mine: slice, span: Span, start: int) -> bytes:
        """The kernels' struct AttendJob for these key heads of one layer."""
        words = self.of_layers(range(layer, layer + 1), [span], start)[0]
        keys, values = self.kv.layer(layer)
        words[0] += mine.start * keys.stride(0) * keys.itemsize
        words[1] += mine.start * values.stride(0) * values.itemsize
        return bytes(words)

    def of_layers(self, layers: range, spans: Sequence[Span], start: int) -> NDArray[np.int64]:
        """int64 [len(layers), 15]: the struct AttendJob for all key heads of each of these layers of these spans."""
        words = np.empty((len(layers), JOB_WORDS), np.int64)
        words[:, :6] = self.kv.addresses(layers)
        words[:, 6:9] = start, len(self.rows), self.kv.layout.scratch
        arrays = (self.write, self.prefix, self.write, self.seen, self.slot, self.position)
        words[:, 9:] = [array.ctypes.data for array in arrays]
        low = {span: self.low(span).ctypes.data for span in set(spans)}
        words[:, 11] = [low[span] for span in spans]
        return words


def call_words(scale: float) -> bytes:
    """The kernels' struct AttendCall for a call that knows the rest itself (`Library.layers_whole`)."""
    return _CALL.pack(*[0] * 15, scale, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class AttentionCall:
    """A call of attention: rows [1, heads, T, dim] as `attend.attend` has them. key and value None: nothing is
    written, the layer's entries are there; value None alone: values are parts of the keys.

    layer: whose entries are read; mine: which of the layer's key heads are those of this attention.
    """

    query: torch.Tensor
    key: torch.Tensor | None
    value: torch.Tensor | None
    layer: int
    mine: slice
    scale: float
    span: Span = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None

    def of_head(self, head: int, heads: int) -> AttentionCall:
        """Of `heads` key heads one, with the query heads that look at it."""
        groups = self.query.shape[1] // heads
        mine, one = slice(head * groups, (head + 1) * groups), slice(head, head + 1)
        return replace(
            self,
            query=self.query[:, mine],
            key=None if self.key is None else self.key[:, one],
            value=None if self.value is None else self.value[:, one],
            mine=slice(self.mine.start + head, self.mine.start + head + 1),
            sinks=None if self.sinks is None else self.sinks[mine],
        )


def fits(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether the kernels take these heads: [1, heads, T, dim], bfloat16 or float32 on the CPU."""
    groups, odd = divmod(query.shape[1], key.shape[1])
    words = query.shape[3] * query.dtype.itemsize % 4 == 0
    kind = query.dtype in (torch.float32, torch.bfloat16) and query.dtype == key.dtype
    return query.device.type == "cpu" and kind and words and not odd and 0 < groups <= MOST_QUERIES


def attend_in_order(lib: Library, jobs: Sequence[tuple[Sight, int]], asked: AttentionCall) -> torch.Tensor:
    """As `attend.attend`, for the jobs and the rows that each begins with; [1, T, heads, value dim]."""
    query = _lined(asked.query)
    given = [None if x is None else _lined(x) for x in (asked.key, asked.value)]
    heads, rows, dim = query.shape[1:]
    width = jobs[0][0].kv.layer(asked.layer)[1].shape[2]
    out = query.new_empty(1, rows, heads, width)
    wide = None if asked.sinks is None else asked.sinks.float().contiguous()
    call = _CALL.pack(
        *(0 if x is None else x.data_ptr() for x in (query, *given)),
        *(n for x in (query, *given) for n in ((0, 0) if x is None else (x.stride(2), x.stride(1)))),
        out.data_ptr(),
        heads,
        asked.mine.stop - asked.mine.start,
        dim,
        width,
        0 if wide is None else wide.data_ptr(),
        asked.scale,
        asked.softcap or 0.0,
        0.0,
        0.0,
    )
    if (covered := sum(len(order.rows) for order, _ in jobs)) != rows:
        raise ValueError(f"jobs of {covered} rows attend in a forward of {rows}")
    parts = [order.words(asked.layer, asked.mine, asked.span, start) for order, start in jobs]
    if len({id(order.kv) for order, _ in jobs}) == len(jobs):
        lib.attend(call, b"".join(parts), len(parts), query.dtype)
    else:  # parts of one session, whose later rows may write where earlier ones read
        for part in parts:
            lib.attend(call, part, 1, query.dtype)
    return out


def attend_latent_in_order(
    lib: Library, jobs: Sequence[tuple[Sight, int]], asked: AttentionCall, heads: LatentHeads
) -> torch.Tensor:
    """The same over latents: asked.query [1, heads, T, nope + rope], asked.key [1, 1, T, rank + rope]; gives [1, T,
    heads, value]. What heads see is never made of a slot, however many rows there are: the two ways have other bits."""
    query = asked.query[0]
    taken = torch.cat((heads.to_latent(lib, query[..., : heads.nope].contiguous()), query[..., heads.nope :]), -1)
    seen = attend_in_order(lib, jobs, replace(asked, query=taken[None]))
    return heads.from_latent(lib, seen[0].transpose(0, 1).contiguous()).transpose(0, 1)[None]


@dataclass(frozen=True, eq=False)
class LatentHeads:
    """What takes each head's rows to a latent and back, in panels: [heads, rank, nope] and [heads, value, rank]."""

    nope: int
    rank: int
    value: int
    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def of(cls, lib: Library, up: torch.Tensor, heads: int, nope: int) -> LatentHeads | None:
        """up: [heads * (nope + value), rank]; None for a dtype or odd widths without a kernel."""
        each = up.detach().view(heads, -1, up.shape[1])
        keys, values = each[:, :nope].transpose(1, 2), each[:, nope:]
        packed = [in_panels(part, lib) for part in (keys, values)]
        if packed[0] is None or packed[1] is None:
            return None
        return cls(nope, up.shape[1], each.shape[1] - nope, packed[0], packed[1])

    def to_latent(self, lib: Library, rows: torch.Tensor) -> torch.Tensor:
        """[heads, T, nope] -> [heads, T, rank]."""
        return lib.batched(rows, addresses(self.keys), self.rank, usual=False)

    def from_latent(self, lib: Library, rows: torch.Tensor) -> torch.Tensor:
        """[heads, T, rank] -> [heads, T, value]."""
        return lib.batched(rows, addresses(self.values), self.value, usual=False)


def addresses(parts: torch.Tensor) -> NDArray[np.int64]:
    """Where each of the tensors lies of which `parts` is made."""
    return parts.data_ptr() + np.arange(len(parts)) * parts.stride(0) * parts.itemsize


def _lined(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(3) == 1 else x.contiguous()
