"""Packed matrices on a GPU: the panels of the CPU's kernels, multiplied there.

Few rows by Triton (triton_panels.py) where it is installed, as torch for CUDA brings it along: the matrix is read once,
in its packed bytes. Many rows, and all of them without Triton, by unpacking some panels at a time into the rows' type
and torch's product: never the whole matrix. Rows are not rounded to bytes here, and weights are rounded to the rows'
type, as those of an expanded matrix are.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

from swarm.base.errors import ModelError
from swarm.model.quant.encoding import MovedColumns
from swarm.model.quant.experts import PackedExperts, Pairs, Routed, Stack
from swarm.model.quant.formats import Format
from swarm.model.quant.matrix import PackedMatrix, dense
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
    whether Triton's kernel may be used; tiled: unpacked weights are multiplied by its tiles too, so that many rows have
    the bits of few."""

    form: Format
    shape: tuple[int, int]
    data: torch.Tensor
    table: torch.Tensor
    triton: bool
    tiled: bool = False
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
        if self.tiled:
            from swarm.model.quant.triton_dense import product

        panels, (outs, columns) = self._panels(), self.shape
        step = max(1, SCRATCH_NUMBERS // (PANEL * columns))
        out = x.new_empty(len(x), outs)
        for first in range(0, len(panels), step):
            weights = unpack(LIES[self.form.number], panels[first : first + step], columns).to(x.dtype)
            start, stop = first * PANEL, min(outs, (first + step) * PANEL)
            if self.tiled:
                own = None if bias is None else bias[start:stop].contiguous()
                out[:, start:stop] = product(x[None], weights[None, : stop - start], own, x.dtype)[0]
            else:
                out[:, start:stop] = functional.linear(x, weights[: stop - start])
        return out if bias is None or self.tiled else (out.float() + bias).to(x.dtype)

    def _panels(self) -> torch.Tensor:
        return self.data.view(-(-self.shape[0] // PANEL), -1)


def on_device(matrix: PackedMatrix, device: torch.device, triton: bool, tiled: bool = False) -> DeviceMatrix:
    """The matrix on a device."""
    table = torch.tensor(TABLES[LIES[matrix.form.number].table], dtype=torch.uint8, device=device)
    return DeviceMatrix(matrix.form, matrix.shape, matrix.data.to(device), table, triton, tiled)


@dataclass(frozen=True, eq=False)
class DeviceStack:
    """One projection of all experts on a device (see experts.py). parts: as of a `Stack`, each a matrix of any of its
    experts (for its sizes) and the panels of all, uint8 [experts, bytes]. Few pairs of a row and an expert go by
    Triton, in one call and with nothing read on the host; many, and all of them without Triton, an expert after
    the other: only those that rows go to, unpacked as matrices of layers are."""

    parts: tuple[tuple[DeviceMatrix, torch.Tensor], ...]
    alternate: bool

    @property
    def experts(self) -> int:
        return len(self.parts[0][1])

    @property
    def in_features(self) -> int:
        return self.parts[0][0].shape[1]

    @property
    def out_features(self) -> int:
        return sum(one.shape[0] for one, _ in self.parts)

    @property
    def nbytes(self) -> int:
        return sum(data.nbytes for _, data in self.parts)

    @property
    def kernels(self) -> set[str]:
        return {one.kernel for one, _ in self.parts}

    def product(self, x: torch.Tensor, routed: Routed | Pairs, bias: torch.Tensor | None, paired: bool) -> torch.Tensor:
        """[pairs, out_features] of the dtype of x, as `Stack.product`."""
        out = self._at_once(x, routed, bias, paired) if isinstance(routed, Pairs) else None
        if out is None:
            assert isinstance(routed, Routed)
            out = self._one_by_one(x, routed, bias, paired)
        return out.view(len(out), 2, -1).transpose(1, 2).reshape(out.shape) if self.alternate else out

    def _at_once(self, x: torch.Tensor, pairs: Pairs, bias: torch.Tensor | None, paired: bool) -> torch.Tensor:
        from swarm.model.quant.triton_panels import routed

        rows = torch.arange(pairs.pairs, device=x.device) if paired else pairs.rows
        found, at = [], 0
        for one, data in self.parts:
            outs = one.shape[0]
            own = None if bias is None else bias[:, at : at + outs].contiguous()
            lie = LIES[one.form.number]
            found.append(routed(lie, data, one.table, x.contiguous(), rows, pairs.experts, own, outs))
            at += outs
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def _one_by_one(self, x: torch.Tensor, routed: Routed, bias: torch.Tensor | None, paired: bool) -> torch.Tensor:
        x = x if paired else x[torch.from_numpy(routed.rows).to(x.device)]
        out = x.new_empty(routed.pairs, self.out_features)
        for expert, first, count in zip(routed.experts, routed.first, routed.count, strict=True):
            rows, at = slice(int(first), int(first + count)), 0
            for one, data in self.parts:
                mine = replace(one, data=data[int(expert)])
                own = None if bias is None else bias[int(expert), at : at + one.shape[0]]
                out[rows, at : at + one.shape[0]] = mine.product(x[rows], own)
                at += one.shape[0]
        return out


def stack_on_device(stack: Stack, device: torch.device, triton: bool, tiled: bool = False) -> DeviceStack | None:
    """All experts of a projection on a device, copied one expert after the other; None where they are not all in panels
    of one kind."""
    parts = []
    for matrices in stack.parts:
        packed = [matrix for matrix in matrices if isinstance(matrix, PackedMatrix)]
        if len(packed) < len(matrices) or len({(matrix.form, matrix.shape) for matrix in packed}) != 1:
            return None
        first = packed[0]
        data = torch.empty(len(packed), first.nbytes, dtype=torch.uint8, device=device)
        for place, matrix in enumerate(packed):
            data[place] = matrix.data
        table = torch.tensor(TABLES[LIES[first.form.number].table], dtype=torch.uint8, device=device)
        parts.append((DeviceMatrix(first.form, first.shape, data[0], table, triton, tiled), data))
    return DeviceStack(tuple(parts), stack.alternate)


def expanded_stack(stack: Stack, dtype: torch.dtype, transposed: bool) -> torch.Tensor:
    """All experts of a projection as numbers, [experts, out, in], or [experts, in, out]."""
    each = []
    for matrices in zip(*stack.parts, strict=True):
        whole = torch.stack([dense(matrix, dtype) for matrix in matrices], 1 if stack.alternate else 0)
        each.append(whole.reshape(-1, stack.in_features))
    found = torch.stack(each)
    return found.transpose(1, 2).contiguous() if transposed else found


def take_experts_to(
    module: PackedExperts, device: torch.device, dtype: torch.dtype, triton: bool, tiled: bool = False
) -> None:
    """Bring the experts of a layer to a device, and choose how few pairs go by Triton. A projection whose matrices are
    in no panels of one kind (GPTQ with `desc_act`) is expanded to `dtype`."""
    for name, stack in list(module.stacks.items()):
        if not isinstance(stack, Stack):
            continue
        if (there := stack_on_device(stack, device, triton, tiled)) is not None:
            module.stacks[name] = there
            continue
        del module.stacks[name]
        weight = expanded_stack(stack, dtype, bool(module.is_transposed))
        module.register_parameter(name, nn.Parameter(weight.to(device), requires_grad=False))
    there_whole = {name for name, stack in module.stacks.items() if isinstance(stack, DeviceStack)}
    whole = {module.first, module.second} <= there_whole
    module.few = FEW_ROWS if triton and whole else 0


def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def take_to(model: nn.Module, device: torch.device, tiled: bool = False) -> None:
    """Bring the packed matrices of a model to the device where its other tensors are; one that two layers share, once.
    What is cut over several devices stays. tiled: rows must not depend on each other. Raises ModelError for a
    matrix that is in no panels."""
    triton = tiled or device.type == "cuda" and has_triton()
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    brought: dict[int, DeviceMatrix | MovedColumns] = {}
    for module in model.modules():
        if isinstance(module, PackedExperts):
            take_experts_to(module, device, dtype, triton, tiled)
        if isinstance(module, PackedLinear | PackedEmbedding):
            matrix, key = module.matrix, id(module.matrix)
            if key not in brought:
                columns = matrix.columns if isinstance(matrix, MovedColumns) else None
                held = matrix.held if isinstance(matrix, MovedColumns) else matrix
                if not isinstance(held, PackedMatrix):
                    raise ModelError(f"a matrix of {matrix.form.name} is not multiplied as stored on {device.type}")
                there = on_device(held, device, triton, tiled)
                brought[key] = there if columns is None else MovedColumns(there, columns.to(device))
            if isinstance(module, PackedLinear):
                module.alone()
            module.matrix = brought[key]
