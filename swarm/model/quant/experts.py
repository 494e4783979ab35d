"""The experts of a layer over matrices that stay as they are stored.

A `Stack` is one projection of all experts: of each expert a matrix, or two one above the other where a file keeps gate
and up apart. Rows come sorted by the expert that they were routed to (`Routed`), so an expert's are side by side, and
an expert that no row was routed to is not touched.

`PackedExperts` takes the place of transformers' module (those with the decorator `use_experts_implementation`) and asks
it for what lies between the projections. Products, and the sum over a row's experts in the order of their choice, give
the bits of a row that depend on that row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from swarm.model.quant.matrix import Matrix, PackedMatrix
from swarm.model.quant.modules import as_rows
from swarm.model.quant.native import Library

Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Routed:
    """Pairs of a row and an expert that it goes to, sorted by expert, an expert's in the order of the rows.

    rows: [pairs], the row of each; place: [rows, chosen], where a row's pairs lie; experts: those that any row goes to;
    first and count: [experts], their pairs.
    """

    rows: Whole
    place: torch.Tensor
    experts: Whole
    first: Whole
    count: Whole

    @property
    def pairs(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Pairs:
    """The same pairs where they are on a device, in the order of the rows: rows and experts int64 [pairs]. Nothing of
    them is read on the host."""

    rows: torch.Tensor
    experts: torch.Tensor
    place: torch.Tensor

    @property
    def pairs(self) -> int:
        return len(self.rows)


def pair(chosen: torch.Tensor) -> Pairs:
    """chosen: [rows, k], the experts of each row, all of them there."""
    place = torch.arange(chosen.numel(), device=chosen.device)
    return Pairs(place // max(1, chosen.shape[1]), chosen.reshape(-1).to(torch.int64), place.view(chosen.shape))


def route(chosen: torch.Tensor, experts: int) -> Routed:
    """chosen: [rows, k], the experts of each row. Raises ValueError for one that is not there."""
    flat: Whole = chosen.detach().to("cpu", torch.int64).numpy().reshape(-1)
    if len(flat) and not 0 <= flat.min() <= flat.max() < experts:
        raise ValueError(f"a row goes to expert {flat.max()} of {experts}")
    order = np.argsort(flat, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    counts = np.bincount(flat, minlength=experts)
    used = np.flatnonzero(counts)
    count = counts[used].astype(np.int64)
    rows = order // max(1, chosen.shape[1])
    return Routed(rows, torch.from_numpy(place).view(chosen.shape), used, np.cumsum(count) - count, count)


@dataclass(frozen=True, eq=False)
class Stack:
    """parts: one or two lists of the matrices of all experts; an expert's outputs are those of the first and then
    those of the second, or with `alternate` one of the first and one of the second in turn."""

    parts: tuple[tuple[Matrix, ...], ...]
    alternate: bool = False
    _table: Whole | None = field(init=False, default=None)
    _lib: Library | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        matrices = [matrix for part in self.parts for matrix in part]
        packed = [matrix for matrix in matrices if isinstance(matrix, PackedMatrix)]
        if len(packed) != len(matrices):
            return
        table = [
            [[m.data.data_ptr(), 0, 0, m.shape[0], m.form.number, 0, 0, 0] for m in part if isinstance(m, PackedMatrix)]
            for part in self.parts
        ]
        object.__setattr__(self, "_table", np.array(table, np.int64))
        object.__setattr__(self, "_lib", packed[0].lib)

    @property
    def experts(self) -> int:
        return len(self.parts[0])

    @property
    def in_features(self) -> int:
        return self.parts[0][0].shape[1]

    @property
    def out_features(self) -> int:
        return sum(part[0].shape[0] for part in self.parts)

    @property
    def nbytes(self) -> int:
        return sum(matrix.nbytes for part in self.parts for matrix in part)

    @property
    def kernels(self) -> set[str]:
        return {matrix.kernel for part in self.parts for matrix in part}

    def product(self, x: torch.Tensor, routed: Routed | Pairs, bias: torch.Tensor | None, paired: bool) -> torch.Tensor:
        """[pairs, out_features] of the dtype of x, which is float32 or bfloat16.

        x: [rows, in_features], or with `paired` [pairs, in_features], a row for every pair. bias: float32 [experts,
        out_features], those of the first part before those of the second.
        """
        if isinstance(routed, Pairs):
            raise TypeError("pairs on a device are for stacks on one")
        out = x.new_empty(routed.pairs, self.out_features)
        if self._table is None or self._lib is None:
            self._one_by_one(x if paired else x[torch.from_numpy(routed.rows)], routed, bias, out)
            return self._in_turn(out)
        parts = self._table[:, routed.experts]
        at, width = 0, self.out_features
        for part in parts:
            part[:, 2] = out.data_ptr() + (routed.first * width + at) * out.itemsize
            if bias is not None:
                part[:, 1] = bias.data_ptr() + (routed.experts * width + at) * bias.itemsize
            part[:, 5], part[:, 6], part[:, 7] = width, routed.first, routed.count
            at += int(part[0, 3]) if len(part) else 0
        if routed.pairs:
            picks = None if paired else routed.rows
            self._lib.grouped(np.ascontiguousarray(parts.reshape(-1, 8)), x, picks, routed.pairs)
        return self._in_turn(out)

    def _in_turn(self, out: torch.Tensor) -> torch.Tensor:
        """Outputs in the order that the model has them in."""
        return out.view(len(out), 2, -1).transpose(1, 2).reshape(out.shape) if self.alternate else out

    def _one_by_one(self, x: torch.Tensor, routed: Routed, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        """For what one call does not multiply: matrices without a kernel, or whose columns lie in another order."""
        for expert, first, count in zip(routed.experts, routed.first, routed.count, strict=True):
            rows, wide = slice(int(first), int(first + count)), [part[expert] for part in self.parts]
            found = [matrix.product(x[rows], None) for matrix in wide]
            joined = torch.cat(found, 1)
            out[rows] = joined if bias is None else (joined.float() + bias[expert]).to(out.dtype)


class Projection(Protocol):
    """One projection of all experts of a layer: a `Stack`, or one on a device (`on_device.DeviceStack`)."""

    @property
    def experts(self) -> int: ...

    @property
    def in_features(self) -> int: ...

    @property
    def alternate(self) -> bool: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def kernels(self) -> set[str]: ...

    def product(self, x: torch.Tensor, routed: Routed | Pairs, bias: torch.Tensor | None, paired: bool) -> torch.Tensor:
        """See `Stack.product`."""
        ...


def unlike(experts: Any) -> bool:
    """Whether a module is no collection of experts that `PackedExperts` can stand for."""
    known = hasattr(type(experts), "_apply_gate") and hasattr(experts, "has_gate")
    return not known or bool(experts.has_post_expert_norm)


def projections(experts: Any) -> tuple[str, str]:
    """Names of a module's first and second weight."""
    return ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj")


class PackedExperts(nn.Module):
    """Stands for the experts of one layer. stacks: by the name of the weight; a weight that has none stays a parameter
    of the usual name, as biases do."""

    def __init__(self, old: Any, stacks: Mapping[str, Projection]) -> None:
        super().__init__()
        self.few = 0
        """Pairs up to which the stacks take them on the device."""
        # What transformers' `_apply_gate` reads: limits, the activation, the config.
        plain = {key: value for key, value in old.__dict__.items() if not key.startswith("_") and key != "training"}
        self.__dict__.update(plain)
        for name, module in old.named_children():
            self.add_module(name, module)
        for name, parameter in old.named_parameters(recurse=False):
            if name not in stacks:
                self.register_parameter(name, parameter)
        self.stacks = dict(stacks)
        self._gate: Callable[[Any, torch.Tensor], torch.Tensor] = type(old)._apply_gate
        self.first, self.second = projections(old)
        self.count = next(iter(stacks.values())).experts
        self._wide: dict[str, torch.Tensor | None] = {}

    def forward(
        self,
        hidden_states: torch.Tensor,
        top_k_index: torch.Tensor | None = None,
        top_k_weights: torch.Tensor | None = None,
        router_indices: torch.Tensor | None = None,
        routing_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Rows [n, width] to rows of the same shape. The experts of each row and their shares, [n, k], by the names
        that one or another family has for them."""
        chosen = router_indices if top_k_index is None else top_k_index
        shares = routing_weights if top_k_weights is None else top_k_weights
        assert chosen is not None and shares is not None
        rows = as_rows(hidden_states, hidden_states.shape[-1])
        routed = pair(chosen) if 0 < chosen.numel() <= self.few else route(chosen, self.count)
        inner = self._multiply(self.first, rows, routed, paired=False)
        act: Any = None if self.has_gate else self.act_fn
        inner = self._gate(self, inner) if act is None else act(inner)
        found = self._multiply(self.second, as_rows(inner, inner.shape[-1]), routed, paired=True)
        weighed = found[routed.place].float() * shares.float().unsqueeze(-1)
        total = weighed[:, 0]
        for k in range(1, weighed.shape[1]):  # one after the other: the same bits however many rows there are
            total = total + weighed[:, k]
        return total.to(hidden_states.dtype).view(hidden_states.shape)

    def _multiply(self, name: str, x: torch.Tensor, routed: Routed | Pairs, paired: bool) -> torch.Tensor:
        stack, bias = self.stacks.get(name), self._wide_bias(name)
        if stack is not None:
            return stack.product(x, routed, bias, paired)
        assert isinstance(routed, Routed)  # `few` is 0 where a projection is expanded
        weight = getattr(self, name)
        x = x.to(weight.dtype) if paired else x[torch.from_numpy(routed.rows)].to(weight.dtype)
        parts: list[torch.Tensor] = []
        for expert, first, count in zip(routed.experts, routed.first, routed.count, strict=True):
            part = x[int(first) : int(first + count)]
            y = part @ weight[expert] if self.is_transposed else functional.linear(part, weight[expert])
            parts.append(y if bias is None else (y.float() + bias[expert]).to(y.dtype))
        return torch.cat(parts) if parts else x.new_empty(0, weight.shape[2 if self.is_transposed else 1])

    def _wide_bias(self, name: str) -> torch.Tensor | None:
        """float32 [experts, out_features], made when it is first asked for: after it was loaded."""
        if name not in self._wide:
            bias = getattr(self, f"{name}_bias", None)
            wide = None if bias is None else bias.detach().float()
            stack = self.stacks.get(name)
            if wide is not None and stack is not None and stack.alternate:
                wide = wide.view(len(wide), -1, 2).transpose(1, 2).reshape(wide.shape)
            self._wide[name] = None if wide is None else wide.contiguous()
        return self._wide[name]


def kernels_of(modules: Sequence[nn.Module]) -> set[str]:
    """Arithmetics of all experts among them."""
    return {k for m in modules if isinstance(m, PackedExperts) for stack in m.stacks.values() for k in stack.kernels}
