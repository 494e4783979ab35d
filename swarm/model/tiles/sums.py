"""Sums along rows, by one program a row and in the same steps whatever the row's company. Imported where triton is.

torch shares a GPU's threads out among the rows that there are, so with their number the order of a sum changes.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

STEP = 1024
"""Numbers that are added at a time."""


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=("row_stride",), do_not_specialize_on_alignment=("x_at", "y_at")
)
def _total(  # type: ignore[no-untyped-def]
    x_at, y_at, columns, row_stride, STEP: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    parts = tl.zeros((STEP,), tl.float32)
    for k in range(0, columns, STEP):
        column = k + tl.arange(0, STEP)
        parts += tl.load(x_at + row * row_stride + column, mask=column < columns, other=0.0).to(tl.float32)
    tl.store(y_at + row, tl.sum(parts, 0))


def total(x: torch.Tensor) -> torch.Tensor:
    """float32 [...]: sums of x [..., n] along its last dimension, in float32."""
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    y = torch.empty(len(rows), dtype=torch.float32, device=x.device)
    if len(rows):
        kernel: Any = _total
        kernel[(len(rows),)](rows, y, rows.shape[1], rows.stride(0), STEP=STEP, enable_fp_fusion=False)
    return y.view(x.shape[:-1])
