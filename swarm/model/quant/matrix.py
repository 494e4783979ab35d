"""A matrix that stays as it is stored: products with it, and rows of it.

`PackedMatrix` lies in panels for the compiled kernels. `StoredMatrix` is for formats that have none: its bytes as in
the file, unpacked some rows at a time into a scratch tensor for each product; slow, but never the whole at once.

What a kernel computes. A row of x is rounded, per 32 columns, to signed bytes with scale largest / 127, so that each
number moves by at most largest / 254. Sums of code times byte are integers; each block's is brought to float32 and
added in the order of the columns. An output therefore differs from the product with the unpacked matrix by at most
sum over blocks of (largest in block / 254) * sum |w| (plus float32 rounding); some 0.5% of the output's usual size.
Its bits depend on its own row of x and its own row of the matrix alone: not on other rows, threads, or processor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from swarm.base.errors import ModelError
from swarm.model.quant.formats import Format
from swarm.model.quant.native import Library, Operand

FLOATS = "float8-chain-v1"
"""Of products with FP8: rows as they are, one chain of fused multiply-adds in float32 in the order of the columns. The
bits of a product with the unpacked float32 matrix by the kernels of `dense.py`."""

KERNEL = "int8-block32-v1"
"""Name of the arithmetic above: what a stage that computes with packed weights says it computes with."""

PANEL = 16
"""Rows of a panel."""

PART_BYTES = 8 << 20
"""Stored bytes that are read at a time while a matrix is brought into panels: those before are let go meanwhile."""

SCRATCH_BYTES = 16 << 20
"""Unpacked numbers that a matrix without a kernel may hold at a time."""


class Matrix(Protocol):
    """[out_features, in_features] on the CPU."""

    @property
    def form(self) -> Format: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def kernel(self) -> str:
        """Name of the arithmetic of `product`."""
        ...

    @property
    def nbytes(self) -> int: ...

    def rows(self, wanted: torch.Tensor) -> torch.Tensor:
        """Rows (int64 [n]) as float32 [n, in_features]. Raises IndexError for one that is not there."""
        ...

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """[n, in_features] to [n, out_features], both float32 or both bfloat16; bias float32."""
        ...


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix in panels (native/layout.h). data: uint8."""

    form: Format
    shape: tuple[int, int]
    data: torch.Tensor
    lib: Library
    kernel: str = KERNEL

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def rows(self, wanted: torch.Tensor) -> torch.Tensor:
        wanted = _within(wanted, self.shape[0])
        out = torch.empty(len(wanted), self.shape[1], dtype=torch.float32)
        self.lib.numbers(self.form.number, self.data, self.shape[1], wanted, out)
        return out

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self.lib.products([self.operand(bias)], x.contiguous())[0]

    def operand(self, bias: torch.Tensor | None) -> Operand:
        """For products with several matrices in one call."""
        return Operand(self.form.number, self.data, self.shape[0], bias)


@dataclass(frozen=True, eq=False)
class StoredMatrix:
    """A matrix as it lies in the file. data: uint8 [out_features, bytes of a row]; order: stored row of each row."""

    form: Format
    shape: tuple[int, int]
    data: torch.Tensor
    order: torch.Tensor | None
    kernel: str = "unpacked"

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def rows(self, wanted: torch.Tensor) -> torch.Tensor:
        wanted = _within(wanted, self.shape[0])
        stored = self.data[wanted if self.order is None else self.order[wanted]]
        values = gguf.dequantize(stored.numpy(), gguf.GGMLQuantizationType(self.form.number))
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).reshape(len(wanted), self.shape[1])

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        out = torch.empty(x.shape[0], self.shape[0], dtype=torch.float32)
        step = max(1, SCRATCH_BYTES // (4 * self.shape[1]))
        for start in range(0, self.shape[0], step):
            stop = min(start + step, self.shape[0])
            part = None if bias is None else bias[start:stop]
            out[:, start:stop] = functional.linear(x.float(), self.rows(torch.arange(start, stop)), part)
        return out.to(x.dtype)


def hold(
    stored: NDArray[np.uint8],
    form: Format,
    shape: tuple[int, ...],
    order: torch.Tensor | None,
    name: str,
    lib: Library | None,
    done: Callable[[int], None] | None = None,
) -> PackedMatrix | StoredMatrix:
    """A matrix of stored bytes, which are copied, some rows at a time. order: int64 [rows], the stored row of each row.
    done: told between two parts how many of the bytes, from the first on, are not read again.

    Raises ModelError, naming the tensor, when bytes and shape do not fit or a scale is not finite.
    """
    if (
        len(shape) != 2
        or shape[1] % form.block
        or stored.nbytes != shape[0] * (shape[1] // form.block) * form.block_bytes
    ):
        raise ModelError(f"{name} of shape {list(shape)} does not fit {stored.nbytes} bytes of {form.name}")
    size = 0 if lib is None else lib.packed_bytes(form.number, *shape)
    source = np.ascontiguousarray(stored).reshape(shape[0], -1)
    places = None if order is None else order.to(torch.int32).contiguous()
    data = torch.empty(size, dtype=torch.uint8) if size else torch.empty(source.shape, dtype=torch.uint8)
    for rows in _parts(shape[0], source.shape[1], order):
        form.check_scales(source[rows.start : rows.stop], name)
        if lib is not None and size:
            lib.pack(form.number, source.ctypes.data, places, (shape[0], shape[1]), data, rows)
        else:
            data.numpy()[rows.start : rows.stop] = source[rows.start : rows.stop]
        if done is not None:
            done(rows.stop * source.shape[1])
    if lib is None or not size:
        return StoredMatrix(form, (shape[0], shape[1]), data, order)
    return PackedMatrix(form, (shape[0], shape[1]), data, lib, FLOATS if form.exact else KERNEL)


def _parts(rows: int, row_bytes: int, order: torch.Tensor | None) -> list[range]:
    """Rows that are held at a time, in whole panels. In another order than the stored one any row may be any part's."""
    step = rows if order is not None else max(PANEL, PART_BYTES // max(row_bytes, 1) // PANEL * PANEL)
    return [range(first, min(first + step, rows)) for first in range(0, rows, max(step, 1))]


def _within(wanted: torch.Tensor, count: int) -> torch.Tensor:
    wanted = wanted.to("cpu", torch.int64).contiguous()
    if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < count:
        raise IndexError(f"rows of a matrix that has {count}")
    return wanted


def dense(matrix: Matrix, dtype: torch.dtype) -> torch.Tensor:
    """The whole matrix unpacked. For tests and for what must have plain parameters."""
    return matrix.rows(torch.arange(matrix.shape[0])).to(dtype)
