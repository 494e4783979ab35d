"""Packed matrices on a GPU: the panels of the CPU's kernels, multiplied there.

Few rows by Triton (triton_panels.py) where it is installed, as torch for CUDA brings it along: the matrix is read once,
in its packed bytes. Many rows, and all of them without Triton, by unpacking some panels at a time into the rows' type
and torch's product: never the whole matrix. Rows are not rounded to bytes here, and weights are rounded to the rows'
type, as those of an expanded matrix are.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from swarm.base.errors import ModelError
from swarm.model.quant.encoding import MovedColumns
from swarm.model.quant.formats import Format
from swarm.model.quant.matrix import PackedMatrix
from swarm.model.quant.modules import PackedEmbedding, PackedLinear
from swarm.model.quant.panels import LIES, PANEL, TABLES, unpack

KERNEL = "tile16-v1"
"""Name of the arithmetic."""
FEW_ROWS = 64
"""Up to so many rows Triton's kernel is used. A guess: nothing was measured on a GPU."""
SCRATCH_NUMBERS = 16 << 20
"""Weights that are there unpacked at a time."""


@dataclass(frozen=True, eq=False)
class DeviceMatrix:
    """A matrix in panels on a device (see matrix.py). data: uint8; table: uint8 [16], what its codes stand for; triton:
    whether Triton's kernel may be used."""

    form: Format
    shape: tuple[int, int]
    data: torch.Tensor
    table: torch.Tensor
    triton: bool
    kernel: str = KERNEL

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def rows(self, wanted: torch.Tensor) -> torch.Tensor:
        """Rows (int64 [n], within the matrix) as float32 on the device. Nothing is read on the host: graphs hold it."""
        wanted = wanted.to(self.data.device)
        found = torch.empty(len(wanted), self.shape[1], device=self.data.device)
        step = max(1, SCRATCH_NUMBERS // (PANEL * self.shape[1]))  # each row's whole panel is unpacked
        for first in range(0, len(wanted), step):
            some = wanted[first : first + step]
            whole = unpack(LIES[self.form.number], self._panels()[some // PANEL], self.shape[1])
            place = torch.arange(len(some), device=some.device) * PANEL + some % PANEL
            found[first : first + step] = whole[place]
        return found

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """[n, in_features] to [n, out_features] of the same floating dtype; bias float32."""
        if self.triton and len(x) <= FEW_ROWS:
            from swarm.model.quant.triton_panels import product

            return product(LIES[self.form.number], self.data, self.table, x.contiguous(), bias, self.shape[0])
        return self._unpacked(x, bias)

    def _unpacked(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        panels, (outs, columns) = self._panels(), self.shape
        step = max(1, SCRATCH_NUMBERS // (PANEL * columns))
        out = x.new_empty(len(x), outs)
        for first in range(0, len(panels), step):
            weights = unpack(LIES[self.form.number], panels[first : first + step], columns).to(x.dtype)
            start, stop = first * PANEL, min(outs, (first + step) * PANEL)
            out[:, start:stop] = functional.linear(x, weights[: stop - start])
        return out if bias is None else (out.float() + bias).to(x.dtype)

    def _panels(self) -> torch.Tensor:
        return self.data.view(-(-self.shape[0] // PANEL), -1)


def on_device(matrix: PackedMatrix, device: torch.device, triton: bool) -> DeviceMatrix:
    """The matrix on a device."""
    table = torch.tensor(TABLES[LIES[matrix.form.number].table], dtype=torch.uint8, device=device)
    return DeviceMatrix(matrix.form, matrix.shape, matrix.data.to(device), table, triton)


def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def take_to(model: nn.Module, device: torch.device) -> None:
    """Bring the packed matrices of a model to the device where its other tensors are; one that two layers share, once.
    Raises ModelError for a matrix that is in no panels."""
    triton = device.type == "cuda" and has_triton()
    brought: dict[int, DeviceMatrix | MovedColumns] = {}
    for module in model.modules():
        if isinstance(module, PackedLinear | PackedEmbedding):
            matrix, key = module.matrix, id(module.matrix)
            if key not in brought:
                columns = matrix.columns if isinstance(matrix, MovedColumns) else None
                held = matrix.held if isinstance(matrix, MovedColumns) else matrix
                if not isinstance(held, PackedMatrix):
                    raise ModelError(f"a matrix of {matrix.form.name} is not multiplied as stored on {device.type}")
                there = on_device(held, device, triton)
                brought[key] = there if columns is None else MovedColumns(there, columns.to(device))
            if isinstance(module, PackedLinear):
                module.alone()
            module.matrix = brought[key]
