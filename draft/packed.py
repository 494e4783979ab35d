"""Matrices that stay int8 in memory on a CPU.

A drafter computes few rows at a time, so its time is that of reading its weights, and on a machine that also hosts
stages memory is what they contend for. int8 halves what is read.
"""

from __future__ import annotations

import torch
from torch import nn

FEW_ROWS = 16
"""Up to so many rows the int8 kernel is at least as fast as unpacking for a bfloat16 product."""

COLUMNS = 64
"""The kernel reads whole vectors and does not look where a matrix ends, so sizes are multiples of this."""

_AT_ONCE = 512


class Int8Linear(nn.Module):
    """y = x W^T + b with W as int8 [out, in] and bfloat16 scales [out]; x and y bfloat16 [..., in] and [..., out]."""

    def __init__(self, packed: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.rows, columns = packed.shape
        if columns % COLUMNS:
            raise ValueError(f"the kernel reads columns in steps of {COLUMNS}, found {columns}")
        spare = -self.rows % COLUMNS
        # A copy in any case: what a file maps begins at any byte and ends where the file does.
        self.packed = nn.functional.pad(packed, (0, 0, 0, spare)).contiguous() if spare else packed.clone()
        self.scale = nn.functional.pad(scale.to(torch.bfloat16), (0, spare))
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if len(flat) <= FEW_ROWS:
            y = torch._weight_int8pack_mm(flat.contiguous(), self.packed, self.scale)
        else:
            y = flat @ (self.packed.to(torch.bfloat16) * self.scale[:, None]).T
        y = y[:, : self.rows] if self.bias is None else y[:, : self.rows] + self.bias
        return y.reshape(*x.shape[:-1], -1)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch has the kernel, for bfloat16 on a CPU that computes it natively."""
    return device.type == "cpu" and dtype == torch.bfloat16 and hasattr(torch, "_weight_int8pack_mm")


def pack_linears(model: nn.Module) -> int:
    """Replace the linear layers below `model` by their packed form; returns how many. Mutates `model`.

    Layers whose input size does not suit the kernel stay.

    Weights that were stored as int8 with a scale per row come back as they were; others are rounded.
    """
    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    linears = [(p, n, m) for p, n, m in found if isinstance(m, nn.Linear) and m.in_features % COLUMNS == 0]
    for parent, name, linear in linears:
        parent._modules[name] = Int8Linear(*round_rows(linear.weight.data), linear.bias)
    return len(linears)


def round_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix [rows, columns] as int8 and float32 scales [rows]: value = int8 * scale, the largest of a row is 127."""
    rounded = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    for first in range(0, len(weight), _AT_ONCE):  # what fits a cache: a head has tens of thousands of rows
        wide = weight[first : first + _AT_ONCE].float()
        scale = (wide.abs().amax(1) / 127).clamp(min=1e-12)
        rounded[first : first + _AT_ONCE] = (wide / scale[:, None]).round_().clamp_(-127, 127)
        scales[first : first + _AT_ONCE] = scale
    return rounded, scales
