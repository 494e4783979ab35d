"""Matrices cut over several devices by their outputs, for layers that none of them has room for.

A row is sent to every device, each multiplies by its outputs, and what they give is put side by side where the row came
from. No sum crosses a device, so an output has the bits that it has in the whole matrix wherever the arithmetic is
that of whole panels (matrix.py). Experts are cut by their number: a row goes to the devices of its experts only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from swarm.base.errors import ModelError
from swarm.model.quant.encoding import MovedColumns
from swarm.model.quant.experts import PackedExperts, Pairs, Projection, Routed, Stack
from swarm.model.quant.formats import Format
from swarm.model.quant.matrix import Matrix, PackedMatrix
from swarm.model.quant.modules import PackedLinear
from swarm.model.quant.on_device import has_triton, on_device, stack_on_device
from swarm.model.quant.panels import PANEL

_PLAIN = {
    torch.float32: Format("F32", 0, 1, 4),
    torch.float16: Format("F16", 1, 1, 2),
    torch.bfloat16: Format("BF16", 30, 1, 2),
}


@dataclass(frozen=True, eq=False)
class PlainMatrix:
    """Plain numbers [out, in] on a device, multiplied by torch. See matrix.py."""

    weight: torch.Tensor
    kernel: str = "torch"

    @property
    def form(self) -> Format:
        return _PLAIN[self.weight.dtype]

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def rows(self, wanted: torch.Tensor) -> torch.Tensor:
        return self.weight[wanted.to(self.weight.device)].float()

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        out = functional.linear(x.to(self.weight.dtype), self.weight)
        return (out if bias is None else out.float() + bias).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Slice:
    """Outputs [first, last) of a matrix, on a device."""

    first: int
    last: int
    matrix: Matrix
    device: torch.device


@dataclass(frozen=True, eq=False)
class SlicedMatrix:
    """One matrix in slices that follow each other; `home` is where rows come from and products go. See matrix.py."""

    slices: tuple[Slice, ...]
    home: torch.device

    @property
    def form(self) -> Format:
        return self.slices[0].matrix.form

    @property
    def shape(self) -> tuple[int, int]:
        return self.slices[-1].last, self.slices[0].matrix.shape[1]

    @property
    def kernel(self) -> str:
        return self.slices[0].matrix.kernel

    @property
    def nbytes(self) -> int:
        return sum(one.matrix.nbytes for one in self.slices)

    def rows(self, wanted: torch.Tensor) -> torch.Tensor:
        """Rows (int64 [n]) as float32 at home."""
        wanted = wanted.to("cpu", torch.int64)
        if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < self.shape[0]:
            raise IndexError(f"rows of a matrix that has {self.shape[0]}")
        out = torch.empty(len(wanted), self.shape[1], device=self.home)
        for one in self.slices:
            mine = torch.nonzero((wanted >= one.first) & (wanted < one.last)).flatten()
            if len(mine):
                out[mine.to(self.home)] = one.matrix.rows(wanted[mine] - one.first).to(self.home)
        return out

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """[n, in] to [n, out] of the same dtype, at home. Every device is asked before any is waited for."""
        found = []
        for one in self.slices:
            part = None if bias is None else bias[one.first : one.last].to(one.device).contiguous()
            found.append(one.matrix.product(x.to(one.device), part))
        return torch.cat([y.to(self.home) for y in found], 1)


@dataclass(frozen=True, eq=False)
class SlicedStack:
    """One projection of all experts, cut by their number. starts: the first expert of each part; see experts.py."""

    starts: tuple[int, ...]
    parts: tuple[Projection, ...]
    devices: tuple[torch.device, ...]

    @property
    def experts(self) -> int:
        return sum(part.experts for part in self.parts)

    @property
    def in_features(self) -> int:
        return self.parts[0].in_features

    @property
    def alternate(self) -> bool:
        return self.parts[0].alternate

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def kernels(self) -> set[str]:
        return {kernel for part in self.parts for kernel in part.kernels}

    def product(self, x: torch.Tensor, routed: Routed | Pairs, bias: torch.Tensor | None, paired: bool) -> torch.Tensor:
        """As `Stack.product`: pairs are sorted by expert, so those of a part lie side by side."""
        if isinstance(routed, Pairs):
            raise TypeError("pairs on one device are for stacks on it")
        found = []
        for start, part, device in zip(self.starts, self.parts, self.devices, strict=True):
            mine = _pairs_of(routed, start, start + part.experts)
            if mine is None:
                continue
            begin, own = mine
            end = begin + own.pairs
            rows = x[begin:end] if paired else x
            some = None if bias is None else bias[start : start + part.experts].to(device).contiguous()
            found.append(part.product(rows.to(device).contiguous(), own, some, paired))
        if not found:
            return self.parts[0].product(x.to(self.devices[0]), routed, None, paired).to(x.device)
        return torch.cat([y.to(x.device) for y in found])


def _pairs_of(routed: Routed, start: int, stop: int) -> tuple[int, Routed] | None:
    """The pairs of experts [start, stop) and where they begin; None for none."""
    a, b = (int(place) for place in np.searchsorted(routed.experts, [start, stop]))
    if a == b:
        return None
    begin = int(routed.first[a])
    end = int(routed.first[b - 1] + routed.count[b - 1])
    own = Routed(
        routed.rows[begin:end], routed.place, routed.experts[a:b] - start, routed.first[a:b] - begin, routed.count[a:b]
    )
    return begin, own


Places = Sequence[tuple[torch.device, float]]
"""Devices and the share that each has of every matrix; the first is home."""


def borders(count: int, shares: Sequence[float], step: int) -> list[int]:
    """Where `count` outputs are cut by `shares`, at whole multiples of `step`: [shares + 1], from 0 to count."""
    ends = np.cumsum(shares) / sum(shares)
    inner = [min(count, round(float(end) * count / step) * step) for end in ends[:-1]]
    return [0, *inner, count]


def slice_matrix(matrix: Matrix | torch.Tensor, places: Places, name: str) -> SlicedMatrix | None:
    """The matrix (or plain numbers [out, in]) cut over devices, copied slice by slice; None for one of so few outputs
    that it is left whole. Raises ModelError, naming it, for one that is in no panels."""
    count = matrix.shape[0]
    if count < PANEL * len(places):
        return None
    part = _cutter(matrix, name)
    slices = []
    for (first, last), (device, _) in zip(
        pairwise(borders(count, [share for _, share in places], PANEL)), places, strict=True
    ):
        if first < last:
            slices.append(Slice(first, last, part(first, last, device), device))
    return SlicedMatrix(tuple(slices), places[0][0])


def _cutter(matrix: Matrix | torch.Tensor, name: str) -> Callable[[int, int, torch.device], Matrix]:
    """Outputs [first, last) of a matrix on a device; `first` is a multiple of a panel."""
    if isinstance(matrix, torch.Tensor):
        return lambda first, last, device: PlainMatrix(matrix[first:last].to(device, copy=True))
    if isinstance(matrix, MovedColumns):
        within, columns = _cutter(matrix.held, name), matrix.columns
        return lambda first, last, device: MovedColumns(within(first, last, device), columns.to(device))
    if not isinstance(matrix, PackedMatrix):
        raise ModelError(
            f"{name} is held as {matrix.form.name}, which is not cut over devices; hold it otherwise with "
            "--weights-as auto, or take a device that has room for a layer"
        )
    packed, panels = matrix, matrix.data.view(-(-matrix.shape[0] // PANEL), -1)

    def cut(first: int, last: int, device: torch.device) -> Matrix:
        data = panels[first // PANEL : -(-last // PANEL)].flatten().clone()
        one = PackedMatrix(packed.form, (last - first, packed.shape[1]), data, packed.lib, packed.kernel)
        return one if device.type == "cpu" else on_device(one, device, device.type == "cuda" and has_triton())

    return cut


def slice_stack(stack: Stack, places: Places, name: str) -> SlicedStack:
    """The experts cut over devices by their number. Raises ModelError, naming them, for ones in no panels on a GPU."""
    edges = borders(stack.experts, [share for _, share in places], 1)
    starts, parts, devices = [], [], []
    for (first, last), (device, _) in zip(pairwise(edges), places, strict=True):
        if first == last:
            continue
        some: Projection | None = Stack(tuple(part[first:last] for part in stack.parts), stack.alternate)
        if device.type != "cpu":
            assert isinstance(some, Stack)
            some = stack_on_device(some, device, device.type == "cuda" and has_triton())
        if some is None:
            raise ModelError(f"{name}: experts of several formats are not cut over devices; use --cpu")
        starts.append(first)
        parts.append(some)
        devices.append(device)
    return SlicedStack(tuple(starts), tuple(parts), tuple(devices))


def slice_layers(layers: nn.Module, places: Places, name: str) -> None:
    """Cut the linear layers and the packed experts below `layers` over devices. What is left goes where the caller
    puts it: home, the first of them. One that several layers share is cut once."""
    done: dict[int, nn.Module] = {}
    for path, parent in list(layers.named_modules()):
        for child_name, child in list(parent.named_children()):
            where = f"{name}{path and '.'}{path}.{child_name}"
            if id(child) in done:
                parent._modules[child_name] = done[id(child)]
            elif isinstance(child, PackedLinear) or type(child) is nn.Linear:
                matrix = child.matrix if isinstance(child, PackedLinear) else child.weight
                cut = slice_matrix(matrix, places, where)
                if cut is not None:
                    done[id(child)] = parent._modules[child_name] = PackedLinear(cut, child.bias)
        if isinstance(parent, PackedExperts):
            for key, stack in list(parent.stacks.items()):
                if isinstance(stack, Stack):
                    parent.stacks[key] = slice_stack(stack, places, f"{name}.{path}.{key}")
