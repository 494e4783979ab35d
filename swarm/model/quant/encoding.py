"""Weights that several stored tensors make up: codes beside scales, zero points, orders.

Checkpoints of safetensors keep a quantised matrix as tensors of their own (`q_proj.qweight`, `q_proj.scales`, ...). An
`Encoding` says how its parts make the numbers of the model's tensor; `schemes.py` finds out which parts belong
together. Nothing is unpacked as a whole in float32: rows come in runs of `SCRATCH_BYTES`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from swarm.base.errors import ModelError
from swarm.model.quant.formats import Format
from swarm.model.quant.matrix import Matrix

SCRATCH_BYTES = 16 << 20
"""Unpacked numbers, in float32, that are there at a time while a tensor is read."""

Parts = Mapping[str, torch.Tensor]
"""Stored tensors by what they are to the encoding ("codes", "scales", ...), as stored."""


class StoredTensor(Protocol):
    """What is known of a stored tensor before it is read; see `manifest.TensorEntry`."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def format(self) -> str: ...

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class Blocks:
    """A matrix brought into blocks that a kernel multiplies by: the name of the format (ggml's), the bytes
    (uint8 [rows, bytes of a row]), and where columns move, the stored column of each column of the blocks."""

    format: str
    data: torch.Tensor
    columns: torch.Tensor | None = None


class Encoding(Protocol):
    """How one tensor is stored. name: what `swarm model show` calls it, such as "gptq-int4-g128"."""

    @property
    def name(self) -> str: ...

    @property
    def kernel_format(self) -> str | None:
        """ggml's name of the blocks that `blocks` will give, as far as the config tells; None for none."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Roles without which the codes make other numbers, or none: those that a file has, by its config."""
        ...

    def shape(self, parts: Mapping[str, StoredTensor]) -> tuple[int, ...]:
        """The shape of the model's tensor. Raises ValueError for parts that do not fit each other."""
        ...

    def check(self, parts: Parts) -> None:
        """Raises ValueError for scales that are not finite, and for orders that name what is not there."""
        ...

    def rows(self, parts: Parts, first: int, last: int) -> torch.Tensor:
        """Rows [first, last) of the model's tensor in float32."""
        ...

    def blocks(self, parts: Parts) -> Blocks | None:
        """The same numbers, to the last bit, in a kernel's blocks; None where they do not fit one."""
        ...


def check_scales(scales: torch.Tensor, largest: float) -> None:
    """Raises ValueError for scales that are not finite, or not so any more times the largest code: no weight is so
    large, and products with the codes as stored would never see the numbers that they make."""
    if not bool(torch.isfinite(scales).all()):
        raise ValueError("its scales are not finite")
    if not bool(torch.isfinite(scales.float() * largest).all()):
        raise ValueError("its scales are too large for float32")


def runs(rows: int, row_numbers: int) -> Iterator[tuple[int, int]]:
    """[first, last) for all rows, as many at a time as the scratch memory holds."""
    step = max(1, SCRATCH_BYTES // max(1, 4 * row_numbers))
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


def expand(name: str, shape: tuple[int, ...], encoding: Encoding, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    """The whole tensor as `dtype`. Raises ModelError naming the tensor."""
    try:
        encoding.check(parts)
        out = torch.empty(shape, dtype=dtype)
        for first, last in runs(shape[0], math.prod(shape[1:])):
            part = encoding.rows(parts, first, last)
            if not bool(torch.isfinite(part).all()):
                raise ValueError("it holds values that are not finite")
            out[first:last] = part
        final = getattr(encoding, "final_shape", None)
        out = out if final is None else out.reshape(final(parts))
    except (ValueError, IndexError, KeyError, TypeError, RuntimeError) as exc:
        raise ModelError(f"{name} cannot be unpacked: {exc}: pull it again") from exc
    return out


@dataclass(frozen=True, eq=False)
class EncodedMatrix:
    """A matrix as it is stored, without a kernel: unpacked some rows at a time for every product. See matrix.py."""

    encoding: Encoding
    parts: Parts
    shape: tuple[int, int]
    kernel: str = "unpacked"

    @property
    def form(self) -> Format:
        return Format(self.encoding.name, -1, 1, 0)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    def rows(self, wanted: torch.Tensor) -> torch.Tensor:
        """Rows (int64 [n]) as float32. Raises IndexError for one that is not there."""
        wanted = wanted.to("cpu", torch.int64)
        if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < self.shape[0]:
            raise IndexError(f"rows of a matrix that has {self.shape[0]}")
        found = [self.encoding.rows(self.parts, row, row + 1) for row in wanted.tolist()]
        return torch.cat(found) if found else torch.empty(0, self.shape[1])

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """[n, in_features] to [n, out_features] of the same dtype; summed in float32, which bias is too."""
        out = torch.empty(x.shape[0], self.shape[0], dtype=torch.float32)
        for first, last in runs(*self.shape):
            part = None if bias is None else bias[first:last]
            out[:, first:last] = functional.linear(x.float(), self.encoding.rows(self.parts, first, last), part)
        return out.to(x.dtype)


@dataclass(frozen=True, eq=False)
class MovedColumns:
    """A matrix whose columns lie in another order (GPTQ with `desc_act`): columns[i] is what column i of `held` was.
    Rows of x are brought into that order, so that the numbers of a group lie side by side. See matrix.py."""

    held: Matrix
    columns: torch.Tensor

    @property
    def form(self) -> Format:
        return self.held.form

    @property
    def shape(self) -> tuple[int, int]:
        return self.held.shape

    @property
    def kernel(self) -> str:
        return self.held.kernel

    @property
    def nbytes(self) -> int:
        return self.held.nbytes + self.columns.nbytes

    def rows(self, wanted: torch.Tensor) -> torch.Tensor:
        """Rows (int64 [n]) as float32 in the model's order."""
        moved = self.held.rows(wanted)
        out = torch.empty_like(moved)
        out[:, self.columns] = moved
        return out

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """float32 [n, in_features] to float32 [n, out_features]."""
        return self.held.product(x[:, self.columns], bias)
