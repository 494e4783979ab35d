"""Attention that adds in the order of positions, so that a row's bits depend on what it sees and on nothing else.

The rows of all sessions of a forward go to one call of the kernels (native/attend.h), which writes their keys and
values to their slots and lets each row read: committed positions first, then the drafted rows on its own path, in
chunks of 64 positions counted from 0. Where a key lies does not matter, nor who else is there.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.model.kvcache import SessionKV
from swarm.model.masks import AttentionChunk, Span
from swarm.model.quant.native import Library
from swarm.model.rows import Rows

MOST_QUERIES = 256
"""Query heads that may share a key head."""
_JOB = struct.Struct("=13q")
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
    _tail: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        rows = self.rows
        self.write = rows.slot.astype(np.int64)
        self.prefix = rows.prefix.astype(np.int64)
        row, slot = np.nonzero(np.unpackbits(rows.ancestors, axis=1, bitorder="little"))
        place = self.kv.position[slot]
        order = np.lexsort((slot, place, row))
        self.slot, self.position = slot[order].astype(np.int64), place[order].astype(np.int64)
        self.seen = np.concatenate([[0], np.bincount(row, minlength=len(rows)).cumsum()]).astype(np.int64)
        arrays = (self.seen, self.slot, self.position)
        self._tail = tuple(array.ctypes.data for array in arrays)

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

    def words(self, layer: int, span: Span, start: int) -> bytes:
        """The kernels' struct AttendJob for one layer."""
        keys, values = self.kv.layer(layer)
        places = (self.write.ctypes.data, self.prefix.ctypes.data, self.low(span).ctypes.data, *self._tail)
        return _JOB.pack(
            keys.data_ptr(),
            values.data_ptr(),
            keys.stride(0),
            values.stride(0),
            start,
            len(self.rows),
            self.kv.layout.scratch,
            *places,
        )


def call_words(scale: float) -> bytes:
    """The kernels' struct AttendCall for a call that knows the rest itself (`Library.layer_whole`)."""
    return _CALL.pack(*[0] * 15, scale, 0.0, 0.0, 0.0)


def fits(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether the kernels take these heads: [1, heads, T, dim], bfloat16 or float32 on the CPU."""
    groups, odd = divmod(query.shape[1], key.shape[1])
    words = query.shape[3] * query.dtype.itemsize % 4 == 0
    kind = query.dtype in (torch.float32, torch.bfloat16) and query.dtype == key.dtype
    return query.device.type == "cpu" and kind and words and not odd and 0 < groups <= MOST_QUERIES


def attend_in_order(
    lib: Library,
    jobs: Sequence[tuple[Sight, int]],
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    span: Span,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """As `attention.attend`, for the jobs and the rows that each begins with; [1, T, heads, value dim]."""
    query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
    heads, rows, dim = query.shape[1:]
    out = query.new_empty(1, rows, heads, value.shape[3])
    wide = None if sinks is None else sinks.float().contiguous()
    call = _CALL.pack(
        *(x.data_ptr() for x in (query, key, value)),
        *(n for x in (query, key, value) for n in (x.stride(2), x.stride(1))),
        out.data_ptr(),
        heads,
        key.shape[1],
        dim,
        value.shape[3],
        0 if wide is None else wide.data_ptr(),
        scale,
        softcap or 0.0,
        0.0,
        0.0,
    )
    if (covered := sum(len(order.rows) for order, _ in jobs)) != rows:
        raise ValueError(f"jobs of {covered} rows attend in a forward of {rows}")
    parts = [order.words(layer, span, start) for order, start in jobs]
    if len({id(order.kv) for order, _ in jobs}) == len(jobs):
        lib.attend(call, b"".join(parts), len(parts), query.dtype)
    else:  # parts of one session, whose later rows may write where earlier ones read
        for part in parts:
            lib.attend(call, part, 1, query.dtype)
    return out
