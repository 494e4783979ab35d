"""Products with packed panels on a GPU, by Triton. Imported where triton is: its own interpreter runs this on CPUs too.

A program makes sixteen rows times thirty-two outputs, whatever the rows are: fewer are filled up with zeros, and
columns are added in the same steps. So an output is computed by the same instructions whoever else is in the pass: for
other numbers of rows Triton would compile other ones where a number is 1 or divided by 16, and is told not to.
Weights are made in float32 as `panels.unpack` makes them, rounded to the rows' type, and added up in float32. Nothing
here was run on a GPU yet: it was compiled for some, and interpreted; tiles are guesses.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from swarm.model.quant.panels import LEAD, SMALL, Lie
from swarm.model.quant.triton_dense import DEPTH, INTERPRETED, OUTPUTS, ROWS, added


@triton.jit
def _half(at):  # type: ignore[no-untyped-def]
    """A binary16 of two bytes that may lie anywhere, as float32."""
    low, high = tl.load(at).to(tl.uint16), tl.load(at + 1).to(tl.uint16)
    return (low | (high << 8)).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _wide(at):  # type: ignore[no-untyped-def]
    """A float32 at a multiple of four."""
    return tl.load(at.to(tl.pointer_type(tl.float32)))


@triton.jit  # type: ignore[untyped-decorator]
def _small(code, E5M2: tl.constexpr):  # type: ignore[no-untyped-def]
    """An FP8 number as float32: e5m2 is the upper half of a binary16, e4m3's exponent is 8 lower."""
    word = code.to(tl.uint16)
    if E5M2:
        return (word << 8).to(tl.float16, bitcast=True).to(tl.float32)
    return (((word & 0x80) << 8) | ((word & 0x7F) << 7)).to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit  # type: ignore[untyped-decorator]
def _weights(  # type: ignore[no-untyped-def]
    base, lane, column, blocks, table_at,
    BITS: tl.constexpr, ZERO: tl.constexpr, SCALE: tl.constexpr, TABLE: tl.constexpr, E5M2: tl.constexpr,
    SCALE_BYTES: tl.constexpr, HEAD_BYTES: tl.constexpr, LEAD_BYTES: tl.constexpr,
):  # fmt: skip
    """float32 [outputs, columns]. base: addresses of panels [outputs, 1]; lane: row of the panel [outputs, 1]; column
    [1, columns], all of them there."""
    b, c = column // 32, column % 32
    codes, tail = base + b * (BITS * 64), base + blocks * (BITS * 64)
    if SCALE == 8:
        return _small(tl.load(codes + 16 * c + lane), E5M2) * _wide(tail + b // 4 * 64 + 4 * lane)
    j, at = c // 4, 4 * lane + c % 4
    if BITS == 8:
        q = tl.load(codes + 64 * j + at).to(tl.int32)
    elif BITS >= 4:
        q = (tl.load(codes + 64 * (j % 4) + at).to(tl.int32) >> (4 * (j // 4))) & 15
        if BITS == 5:
            q = q | (((tl.load(codes + 256 + at).to(tl.int32) >> j) & 1) << 4)
        if BITS == 6:
            q = q | (((tl.load(codes + 256 + 64 * (j // 4) + at).to(tl.int32) >> (2 * (j % 4))) & 3) << 4)
    else:
        q = (tl.load(codes + 64 * (j // 4) + at).to(tl.int32) >> (2 * (j % 4))) & 3
        if BITS == 3:
            q = q | (((tl.load(codes + 128 + at).to(tl.int32) >> j) & 1) << 2)
    if TABLE:
        q = tl.load(table_at + q).to(tl.int32)
    number = (q - ZERO).to(tl.float32)
    h = c // 16
    head = tail + (b // 8) * (8 * SCALE_BYTES + HEAD_BYTES)
    s = tail + b * SCALE_BYTES + LEAD_BYTES
    if HEAD_BYTES > 0:
        s = s + (b // 8 + 1) * HEAD_BYTES
    if SCALE == 0:
        return number * _half(s + 2 * lane)
    if SCALE == 1:
        return number * _half(s + 2 * lane) + _half(s + 32 + 2 * lane)
    if SCALE == 2:
        least = _half(head + 32 + 2 * lane) * tl.load(s + 16 + lane).to(tl.float32)
        return number * (_half(head + 2 * lane) * tl.load(s + lane).to(tl.float32)) - least
    if SCALE == 3:
        return number * (_half(head + 2 * lane) * tl.load(s + 16 * h + lane).to(tl.int8, bitcast=True).to(tl.float32))
    if SCALE == 4:
        both = tl.load(s + 16 * h + lane).to(tl.int32)
        least = _half(head + 32 + 2 * lane) * (both >> 4).to(tl.float32)
        return number * (_half(head + 2 * lane) * (both & 15).to(tl.float32)) - least
    if SCALE == 5:
        return number * (_half(head + 2 * lane) * tl.load(s + lane).to(tl.int8, bitcast=True).to(tl.float32))
    if SCALE == 6:
        e = tl.load(s + lane).to(tl.int32)
        bits = tl.where(e < 2, 0x00200000 << tl.minimum(e, 1), (e - 1) << 23)
        return number * bits.to(tl.float32, bitcast=True)
    whole = _wide(tail + 64 + 4 * lane)
    scale = _small(tl.load(s + 16 * h + lane), False)
    return number * (tl.where(whole < 0, scale / -whole, scale * whole) * 0.5)


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=("rows",), do_not_specialize_on_alignment=("x_at", "bias_at", "y_at")
)
def _product(  # type: ignore[no-untyped-def]
    x_at, w_at, table_at, bias_at, y_at, rows, outs, columns, panel_bytes,
    BIAS: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    BITS: tl.constexpr, ZERO: tl.constexpr, SCALE: tl.constexpr, TABLE: tl.constexpr, E5M2: tl.constexpr,
    SCALE_BYTES: tl.constexpr, HEAD_BYTES: tl.constexpr, LEAD_BYTES: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(1) * M + tl.arange(0, M)
    n = tl.program_id(0) * N + tl.arange(0, N)
    there = tl.minimum(n, outs - 1)  # outputs beyond the last are computed as it and thrown away
    base = w_at + (there // 16).to(tl.int64)[:, None] * panel_bytes
    total = tl.zeros((M, N), tl.float32)
    for k in range(0, columns, K):
        column = k + tl.arange(0, K)
        inside = column < columns
        x = tl.load(x_at + m.to(tl.int64)[:, None] * columns + column[None, :],
                    mask=(m < rows)[:, None] & inside[None, :], other=0.0)  # fmt: skip
        w = _weights(base, (there % 16)[:, None], tl.where(inside, column, 0)[None, :], columns // 32, table_at,
                     BITS, ZERO, SCALE, TABLE, E5M2, SCALE_BYTES, HEAD_BYTES, LEAD_BYTES)  # fmt: skip
        total = added(x, tl.trans(w).to(x.dtype), total, WIDE)
    if BIAS:
        total += tl.load(bias_at + there)[None, :]
    kept = (m < rows)[:, None] & (n < outs)[None, :]
    tl.store(y_at + m.to(tl.int64)[:, None] * outs + n[None, :], total.to(y_at.dtype.element_ty), mask=kept)


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize_on_alignment=("x_at", "bias_at", "y_at", "row_at", "expert_at")
)
def _routed(  # type: ignore[no-untyped-def]
    x_at, w_at, table_at, bias_at, y_at, row_at, expert_at, outs, columns, panel_bytes, expert_bytes,
    BIAS: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    BITS: tl.constexpr, ZERO: tl.constexpr, SCALE: tl.constexpr, TABLE: tl.constexpr, E5M2: tl.constexpr,
    SCALE_BYTES: tl.constexpr, HEAD_BYTES: tl.constexpr, LEAD_BYTES: tl.constexpr,
):  # fmt: skip
    """As `_product`, of one row by the matrix of one expert: the first of M rows, the others zeros."""
    pair, m = tl.program_id(1), tl.arange(0, M)
    n = tl.program_id(0) * N + tl.arange(0, N)
    there = tl.minimum(n, outs - 1)
    expert, row = tl.load(expert_at + pair), tl.load(row_at + pair)
    base = w_at + expert * expert_bytes + (there // 16).to(tl.int64)[:, None] * panel_bytes
    total = tl.zeros((M, N), tl.float32)
    for k in range(0, columns, K):
        column = k + tl.arange(0, K)
        inside = column < columns
        x = tl.load(x_at + row * columns + column[None, :] + 0 * m[:, None],
                    mask=(m < 1)[:, None] & inside[None, :], other=0.0)  # fmt: skip
        w = _weights(base, (there % 16)[:, None], tl.where(inside, column, 0)[None, :], columns // 32, table_at,
                     BITS, ZERO, SCALE, TABLE, E5M2, SCALE_BYTES, HEAD_BYTES, LEAD_BYTES)  # fmt: skip
        total = added(x, tl.trans(w).to(x.dtype), total, WIDE)
    if BIAS:
        total += tl.load(bias_at + expert * outs + there)[None, :]
    kept = (m < 1)[:, None] & (n < outs)[None, :]
    to = y_at + pair.to(tl.int64) * outs + n[None, :] + 0 * m[:, None]
    tl.store(to, total.to(y_at.dtype.element_ty), mask=kept)


def constants(lie: Lie, bias: bool) -> dict[str, int | bool]:
    """What a kernel is compiled for: a format, with a bias or without."""
    return {
        "BIAS": bias,
        "WIDE": INTERPRETED,
        "M": ROWS,
        "N": OUTPUTS,
        "K": DEPTH,
        "BITS": lie.bits,
        "ZERO": lie.zero,
        "SCALE": lie.scale,
        "TABLE": lie.table,
        "E5M2": lie.wide,
        "SCALE_BYTES": lie.scale_bytes,
        "HEAD_BYTES": lie.head_bytes,
        "LEAD_BYTES": LEAD if lie.scale == SMALL else 0,
    }


def product(
    lie: Lie, data: torch.Tensor, table: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None, outs: int
) -> torch.Tensor:
    """x [n, columns] times the matrix in panels `data` (uint8) on the same device: [n, outs] of the dtype of x.

    table: uint8 [16], `panels.TABLES` of the format; bias: float32 or None.
    """
    rows, columns = x.shape
    y = x.new_empty(rows, outs)
    if not rows:
        return y
    panel_bytes = data.numel() // -(-outs // 16)
    grid = (-(-outs // OUTPUTS), -(-rows // ROWS))
    kernel: Any = _product
    given = (x, data, table, y if bias is None else bias, y, rows, outs, columns, panel_bytes)
    # Products and sums rounded one by one, as `panels.unpack` does: fused ones would give other weights.
    kernel[grid](*given, **constants(lie, bias is not None), enable_fp_fusion=False)
    return y


def routed(
    lie: Lie,
    data: torch.Tensor,
    table: torch.Tensor,
    x: torch.Tensor,
    rows: torch.Tensor,
    experts: torch.Tensor,
    bias: torch.Tensor | None,
    outs: int,
) -> torch.Tensor:
    """Rows of x [n, columns] times the matrices of experts, data uint8 [experts, bytes] in panels: [pairs, outs].

    rows and experts: int64 [pairs] on the device, which row and which expert each pair is of, none out of range
    (nothing is read on the host, so nobody looks). bias: float32 [experts, outs]. An output has the bits of
    `product`'s.
    """
    pairs, columns = len(rows), x.shape[1]
    y = x.new_empty(pairs, outs)
    if not pairs:
        return y
    expert_bytes = data.shape[1]
    panel_bytes = expert_bytes // -(-outs // 16)
    grid = (-(-outs // OUTPUTS), pairs)
    kernel: Any = _routed
    given = (x, data, table, y if bias is None else bias, y, rows, experts, outs, columns, panel_bytes, expert_bytes)
    kernel[grid](*given, **constants(lie, bias is not None), enable_fp_fusion=False)
    return y
