"""Attention over slots that adds in the order of positions, on a GPU. Imported where triton is.

The semantics are those of the CPU's kernels (native/attend.h): positions in chunks of 64 counted from 0, in rising
order, each in its own place of its chunk, whether its key lies in a committed or in a scratch slot; the softmax is
carried from chunk to chunk, and its weights are rounded to the rows' type before they multiply the values.

A program takes lanes of rows and query heads that share a key head. Where no row sees drafts, as in a prompt, several
rows share a program, since the same slots hold their positions; else a row is alone in one, with the same number of
lanes. A chunk of which a lane sees nothing changes nothing of it, so both give the same bits. Wide values are made in
parts of 64 numbers, each by a program that computes the scores again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from swarm.model.masks import AttentionChunk, Span
from swarm.model.quant.triton_dense import INTERPRETED, added
from swarm.model.tiles.sight import DeviceSight

LANES, CHUNK, DEPTH, VALUES = 16, 64, 64, 64
"""Lanes at least; positions of a chunk; numbers of a key that are multiplied in a step; numbers of a value."""
EVERYTHING, WINDOW, CHUNKED = 0, 1, 2
_LANE_WARPS = 32
"""Lanes for which a warp more is used, beyond four."""
_VARYING = ("rows", "each", "looks", "reach", "q_head", "q_row", "k_head", "k_slot", "v_head", "v_slot", "bits_row")


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=_VARYING,
    do_not_specialize_on_alignment=(
        "q_at", "k_at", "v_at", "sink_at", "y_at", "prefix_at", "position_at", "scratch_at", "place_at", "bits_at"
    ),
)  # fmt: skip
def _attend(  # type: ignore[no-untyped-def]
    q_at, k_at, v_at, sink_at, y_at, prefix_at, position_at, scratch_at, place_at, bits_at,
    rows, each, looks, reach, groups, dim, width, scale, cap,
    q_head, q_row, k_head, k_slot, v_head, v_slot, bits_row,
    SPAN: tl.constexpr, CAP: tl.constexpr, SINKS: tl.constexpr, WIDE: tl.constexpr,
    G: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    lane, key_head = tl.arange(0, M), tl.program_id(1)
    first_row = tl.program_id(0) * each
    row = first_row + lane // G
    there = (lane // G < each) & (row < rows) & (lane % G < groups)
    row = tl.where(there, row, first_row)
    head = key_head * groups + tl.where(there, lane % G, 0)
    prefix, position = tl.load(prefix_at + row), tl.load(position_at + row)
    low = tl.zeros((M,), tl.int32)
    if SPAN == 1:
        low = tl.maximum(position - reach + 1, 0)
    if SPAN == 2:
        low = position // reach * reach
    scratch = tl.load(scratch_at)
    shown = tl.max(prefix, 0)
    last = tl.maximum(shown, tl.max(position, 0) + 1)
    best = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    if SINKS:
        best = tl.load(sink_at + head)
        total = tl.full((M,), 1.0, tl.float32)
    v = tl.program_id(2) * V + tl.arange(0, V)
    sums = tl.zeros((M, V), tl.float32)
    q_row_at = q_at + head.to(tl.int64) * q_head + row.to(tl.int64) * q_row
    for chunk in range(tl.min(low, 0) // N, (last + N - 1) // N):
        p = chunk * N + tl.arange(0, N)
        slot = tl.where(p < shown, scratch + p, -1)
        if (looks > 0) & (chunk * N + N > shown):
            for s in range(0, looks, N):
                drafted = s + tl.arange(0, N)
                real = drafted < looks
                bits = tl.load(bits_at + first_row * bits_row + drafted // 8, mask=real, other=0).to(tl.int32)
                place = tl.load(place_at + drafted, mask=real, other=-1)
                mine = ((bits >> (drafted % 8)) & 1) != 0
                hit = (place[None, :] == p[:, None]) & mine[None, :] & (p >= shown)[:, None]
                slot = tl.maximum(slot, tl.max(tl.where(hit, drafted[None, :], -1), 1))
        held = slot >= 0
        at = tl.where(held, slot, 0).to(tl.int64)
        scores = tl.zeros((M, N), tl.float32)
        for k in range(0, dim, D):
            d = k + tl.arange(0, D)
            q = tl.load(q_row_at[:, None] + d[None, :], mask=there[:, None] & (d < dim)[None, :], other=0.0)
            key = tl.load(k_at + key_head.to(tl.int64) * k_head + at[None, :] * k_slot + d[:, None],
                          mask=held[None, :] & (d < dim)[:, None], other=0.0)  # fmt: skip
            scores = added(q, key, scores, WIDE)
        scores = scores * scale
        if CAP:
            flat = tl.exp(-2.0 * tl.abs(scores / cap))
            scores = tl.where(scores < 0, -cap, cap) * ((1.0 - flat) / (1.0 + flat))
        seen = held[None, :] & ((p[None, :] < prefix[:, None]) | (p >= shown)[None, :]) & (p[None, :] >= low[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        top = tl.maximum(best, tl.max(scores, 1))
        level = tl.where(top == float("-inf"), 0.0, top)
        share = tl.exp(scores - level[:, None])
        keep = tl.exp(best - level)
        total = total * keep + tl.sum(share, 1)
        value = tl.load(v_at + key_head.to(tl.int64) * v_head + at[:, None] * v_slot + v[None, :],
                        mask=held[:, None] & (v < width)[None, :], other=0.0)  # fmt: skip
        sums = added(share.to(value.dtype), value, sums * keep[:, None], WIDE)
        best = top
    out = sums / total[:, None]
    out = tl.where(out == 0.0, 0.0, out)  # no zero has a sign: a chunk that was not seen would take it away
    to = y_at + (row.to(tl.int64) * (tl.num_programs(1) * groups) + head)[:, None] * width + v[None, :]
    tl.store(to, out.to(y_at.dtype.element_ty), mask=there[:, None] & (v < width)[None, :])


@dataclass(frozen=True)
class Looking:
    """How heads look at slots: additive sinks float32 [heads], and the rest as `attend.attend` has it."""

    scale: float
    span: Span = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None


def attend_slots(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, sight: DeviceSight, asked: Looking
) -> torch.Tensor:
    """query [heads, n, dim] of the rows of one job, keys [kv heads, slots, dim] and values [kv heads, slots, width],
    all of one dtype and numbers of a row or a slot side by side; the rows' own keys and values are in their slots.
    Gives [n, heads, width]."""
    query = query if query.stride(2) == 1 else query.contiguous()
    heads, rows, dim = query.shape
    shared, width = keys.shape[0], values.shape[2]
    groups = heads // shared
    lanes = triton.next_power_of_2(groups)
    tile = max(LANES, lanes)
    each = 1 if sight.looks else tile // lanes
    out = query.new_empty(rows, heads, width)
    span, reach = _span(asked.span)
    sinks = None if asked.sinks is None else asked.sinks.float().contiguous()
    grid = (-(-rows // each), shared, -(-width // VALUES))
    kernel: Any = _attend
    kernel[grid](
        query, keys, values, out if sinks is None else sinks, out,
        sight.prefix, sight.position, sight.scratch, sight.place, sight.bits,
        rows, each, sight.looks, reach, groups, dim, width, asked.scale, asked.softcap or 1.0,
        query.stride(0), query.stride(1), *keys.stride()[:2], *values.stride()[:2], sight.bits.stride(0),
        SPAN=span, CAP=asked.softcap is not None, SINKS=sinks is not None, WIDE=INTERPRETED,
        G=lanes, M=tile, N=CHUNK, D=DEPTH, V=VALUES,
        num_warps=4 if tile <= _LANE_WARPS else 8, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def _span(span: Span) -> tuple[int, int]:
    if span is None:
        return EVERYTHING, 1
    return (CHUNKED, span.size) if isinstance(span, AttentionChunk) else (WINDOW, span)
