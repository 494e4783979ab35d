"""Products of plain numbers whose rows do not depend on each other. Imported where triton is.

A program makes sixteen rows times thirty-two outputs, whatever the rows are: fewer are filled up with zeros, columns
are added in the same steps, and never by several programs. These are the tiles of packed matrices too
(quant/triton_panels.py), so a matrix that was unpacked gives the bits of the packed one. One tile for prompts and for
single rows: what prompts lose by it was not measured.

Triton compiles a kernel anew for a number that is 1, and for one that sixteen divides. What follows the number of rows,
and what follows where a tensor begins, is kept from that, so that all rows are computed by one program.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

ROWS, OUTPUTS, DEPTH = 16, 32, 128
"""Of a tile: rows, outputs, and columns of a step."""

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether Triton's interpreter runs the kernels. It takes the bit patterns of bfloat16 for numbers, and leaves the
order of a product's sums to numpy, where they follow a row's place in its tile. So it adds up as `added` says."""


@triton.jit  # type: ignore[untyped-decorator]
def added(a, b, total, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """total [m, n] and the product of a [m, k] and b [k, n], in float32. WIDE: without tensor cores, k by k."""
    if WIDE:
        return total + tl.sum(a.to(tl.float32)[:, :, None] * b.to(tl.float32)[None, :, :], 1)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=("rows", "a_batch", "a_row", "a_column", "b_batch", "b_row", "b_column"),
    do_not_specialize_on_alignment=("a_at", "b_at", "bias_at", "y_at"),
)
def _product(  # type: ignore[no-untyped-def]
    a_at, b_at, bias_at, y_at, rows, outs, columns,
    a_batch, a_row, a_column, b_batch, b_row, b_column,
    BIAS: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(1).to(tl.int64) * M + tl.arange(0, M)
    n = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    batch = tl.program_id(2).to(tl.int64)
    total = tl.zeros((M, N), tl.float32)
    for k in range(0, columns, K):
        column = (k + tl.arange(0, K)).to(tl.int64)
        inside = column < columns
        a = tl.load(a_at + batch * a_batch + m[:, None] * a_row + column[None, :] * a_column,
                    mask=(m < rows)[:, None] & inside[None, :], other=0.0)  # fmt: skip
        b = tl.load(b_at + batch * b_batch + n[:, None] * b_row + column[None, :] * b_column,
                    mask=(n < outs)[:, None] & inside[None, :], other=0.0)  # fmt: skip
        total = added(a, tl.trans(b), total, WIDE)
    if BIAS:
        total += tl.load(bias_at + n, mask=n < outs, other=0.0)[None, :]
    kept = (m < rows)[:, None] & (n < outs)[None, :]
    to = y_at + (batch * rows + m)[:, None] * outs + n[None, :]
    tl.store(to, total.to(y_at.dtype.element_ty), mask=kept)


def product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """a [batch, rows, columns] times b [batch, outs, columns]: [batch, rows, outs] of `dtype`, summed up in float32.

    a and b: of one dtype, on one device, laid in any way (a batch may be expanded); bias: float32 [outs], contiguous.
    """
    batch, rows, columns = a.shape
    outs = b.shape[1]
    y = torch.empty(batch, rows, outs, dtype=dtype, device=a.device)
    if not y.numel():
        return y
    grid = (-(-outs // OUTPUTS), -(-rows // ROWS), batch)
    kernel: Any = _product
    given = (a, b, y if bias is None else bias, y, rows, outs, columns, *a.stride(), *b.stride())
    kernel[grid](*given, BIAS=bias is not None, WIDE=INTERPRETED, M=ROWS, N=OUTPUTS, K=DEPTH, enable_fp_fusion=False)
    return y
