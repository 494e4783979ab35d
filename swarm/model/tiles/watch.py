"""What a forward on a GPU asks of torch, taken by kernels whose rows do not depend on each other.

torch's products choose the order of their sums by the number of rows, and its sums along rows share the GPU's threads
out by it. So while a block computes, both are taken from torch's functions, whoever calls them: layers, norms, routers,
experts. Functions of single numbers stay torch's, which computes each the same wherever it lies. What adds up and is
taken by nobody is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from swarm.model.tiles.kernels import KINDS, RowTiles

_ADD_UP = frozenset(
    "linear matmul __matmul__ __rmatmul__ mm bmm mv addmm addbmm baddbmm einsum tensordot dot vdot inner "
    "scaled_dot_product_attention conv1d conv2d _grouped_mm grouped_mm solve_triangular bilinear "
    "sum mean nansum nanmean var std var_mean std_mean norm vector_norm linalg_vector_norm linalg_norm normalize "
    "softmax log_softmax layer_norm rms_norm group_norm instance_norm batch_norm logsumexp logcumsumexp cumsum "
    "cumprod prod scatter_add scatter_add_ scatter_reduce scatter_reduce_ index_reduce_ embedding_bag "
    "cosine_similarity topk".split()
)
"""Functions of torch that add up, or choose among equals, in an order of their own."""
_MEMBERS = frozenset(("matmul", "__matmul__", "mm", "bmm"))


class BySlots(Protocol):
    """Who says whether the code that runs goes through slots itself: above 0 in either way."""

    over_slots: int
    as_they_lie: int


class InTiles(TorchFunctionMode):
    """While it is entered, the kernels compute what adds up. found: names of functions that torch added up by."""

    def __init__(self, tiles: RowTiles, slots: BySlots) -> None:
        super().__init__()
        self._tiles, self._slots = tiles, slots
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in _ADD_UP or not _of_floats(args):
            return func(*args, **named)
        out: Any = None
        if not (self._slots.over_slots or self._slots.as_they_lie):
            if func is functional.linear:
                out = _linear(self._tiles, args, named)
            elif name in _MEMBERS:
                out = _matmul(self._tiles, args, named)
            elif name in _TAKEN:
                out = _TAKEN[name](self._tiles, args, named)
        if out is not None:
            return out
        if not _of_one(name, args):
            self.found.append(name)
        return func(*args, **named)


def _of_floats(args: Sequence[Any]) -> bool:
    """Whole numbers and truth values add up to the same in any order."""
    first = args[0] if args else None
    return not isinstance(first, torch.Tensor) or first.is_floating_point()


def _of_one(name: str, args: Sequence[Any]) -> bool:
    """A product whose sums have one term (rotary angles: frequencies times positions)."""
    return "matmul" in name and isinstance(args[0], torch.Tensor) and args[0].shape[-1] == 1


def _linear(tiles: RowTiles, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    given = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(named)
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    if weight.dim() != 2 or x.dtype not in KINDS or x.dtype != weight.dtype:
        return None
    if not weight.numel():  # sums of nothing: experts that every row goes to, of width 0
        nothing: torch.Tensor = x.new_zeros(*x.shape[:-1], weight.shape[0])
        return nothing if bias is None else nothing.add(bias)
    return tiles.linear(x, weight, bias)


def _matmul(tiles: RowTiles, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    if named or len(args) != 2 or not all(isinstance(x, torch.Tensor) for x in args):
        return None
    a, b = args
    if a.dtype not in KINDS or a.dtype != b.dtype or a.dim() < 2 or b.dim() < 2 or _of_one("matmul", args):
        return None
    if b.dim() == 2:
        return tiles.linear(a, b.transpose(0, 1), None)
    return tiles.product(a, b.transpose(-1, -2))


def _addmm(tiles: RowTiles, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    """bias + x @ weight (Conv1D), where the bias is a row."""
    if named or len(args) != 3:
        return None
    bias, x, weight = args
    same = bias.dtype == x.dtype == weight.dtype and x.dtype in KINDS
    return tiles.linear(x, weight.transpose(0, 1), bias) if same and bias.dim() == 1 else None


def _baddbmm(tiles: RowTiles, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    given = dict(zip(("input", "batch1", "batch2"), args, strict=False)) | dict(named)
    first, a, b = (given.pop(name) for name in ("input", "batch1", "batch2"))
    beta, alpha = given.pop("beta", 1), given.pop("alpha", 1)
    if given or a.dtype not in KINDS or a.dtype != b.dtype:
        return None
    found = tiles.product(a.float(), b.float().transpose(-1, -2))
    out: torch.Tensor = (first.float() * beta + found * alpha).to(a.dtype)
    return out


Along = tuple[torch.Tensor, int, bool, torch.dtype]
"""A tensor, the dimension that a function goes along, whether it keeps it, and the dtype of what it gives."""


def _along(args: Sequence[Any], named: Mapping[str, Any]) -> Along | None:
    """The arguments of a function along one dimension; None for all others."""
    given = dict(zip(("input", "dim", "keepdim"), args, strict=False)) | dict(named)
    x, dim = given.pop("input"), given.pop("dim", given.pop("axis", None))
    dtype, keep = given.pop("dtype", None), bool(given.pop("keepdim", False))
    given.pop("_stacklevel", None)
    if isinstance(dim, list | tuple) and len(dim) == 1:
        dim = dim[0]
    if given or not isinstance(dim, int) or x.dtype not in KINDS or dtype not in (None, *KINDS) or not x.dim():
        return None
    return x, dim, keep, dtype or x.dtype


def _whole(found: torch.Tensor, dim: int, keep: bool, dtype: torch.dtype) -> torch.Tensor:
    """[..., 1], the dimension at its end, as torch gives it."""
    found = found.transpose(dim, -1).to(dtype)
    return found if keep else found.squeeze(dim)


def _sum(tiles: RowTiles, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    if (one := _along(args, named)) is None:
        return None
    x, dim, keep, dtype = one
    return _whole(tiles.total(x.transpose(dim, -1)), dim, keep, dtype)


def _mean(tiles: RowTiles, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    if (one := _along(args, named)) is None:
        return None
    x, dim, keep, dtype = one
    return _whole(tiles.total(x.transpose(dim, -1)) / x.shape[dim], dim, keep, dtype)


def _typed(args: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The named arguments of a softmax, with the dtype that stands third."""
    kind = next((kind for kind in args[2:] if isinstance(kind, torch.dtype)), None)
    return dict(named) if kind is None else {**named, "dtype": kind}


def _softmax(tiles: RowTiles, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    if (one := _along(args[:2], _typed(args, named))) is None:
        return None
    x, dim, _, dtype = one
    wide = x.transpose(dim, -1).float()
    shares = torch.exp(wide - wide.amax(-1, keepdim=True))
    return (shares / tiles.total(shares)).transpose(dim, -1).to(dtype)


def _log_softmax(tiles: RowTiles, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    if (one := _along(args[:2], _typed(args, named))) is None:
        return None
    x, dim, _, dtype = one
    wide = x.transpose(dim, -1).float()
    wide = wide - wide.amax(-1, keepdim=True)
    return (wide - torch.log(tiles.total(torch.exp(wide)))).transpose(dim, -1).to(dtype)


def _spread(tiles: RowTiles, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float32: x [..., n] less its mean, and the mean [..., 1] of that squared."""
    wide = x.float()
    wide = wide - tiles.total(wide) / x.shape[-1]
    return wide, tiles.total(wide * wide) / x.shape[-1]


def _layer_norm(tiles: RowTiles, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    given = dict(zip(names, args, strict=False)) | dict(named)
    x, weight, bias = given["input"], given.get("weight"), given.get("bias")
    if len(given["normalized_shape"]) != 1 or x.dtype not in KINDS:
        return None
    wide, variance = _spread(tiles, x)
    out: torch.Tensor = wide * torch.rsqrt(variance + float(given.get("eps", 1e-5)))
    out = out if weight is None else out * weight.float()
    out = out if bias is None else out + bias.float()
    return out.to(x.dtype)


def _rms_norm(tiles: RowTiles, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    given = dict(zip(("input", "normalized_shape", "weight", "eps"), args, strict=False)) | dict(named)
    x, weight, eps = given["input"], given.get("weight"), given.get("eps")
    if len(given["normalized_shape"]) != 1 or x.dtype not in KINDS:
        return None
    wide = x.float()
    # torch takes the least step of the type that it computes in
    least = torch.finfo(torch.float32).eps if eps is None else float(eps)
    out: torch.Tensor = wide * torch.rsqrt(tiles.total(wide * wide) / x.shape[-1] + least)
    out = out if weight is None else out * weight.float()
    return out.to(x.dtype)


def _topk(tiles: RowTiles, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Of equals those at the nearest places come first: `topk` leaves it open."""
    given = dict(zip(("input", "k", "dim"), args, strict=False)) | dict(named)
    if not given.get("largest", True):
        return None
    dim = given.get("dim", -1)
    value, place = torch.sort(given["input"], dim=dim, descending=True, stable=True)
    return torch.return_types.topk((value.narrow(dim, 0, given["k"]), place.narrow(dim, 0, given["k"])))


_TAKEN: Mapping[str, Callable[[RowTiles, Sequence[Any], Mapping[str, Any]], Any]] = {
    "addmm": _addmm,
    "baddbmm": _baddbmm,
    "sum": _sum,
    "mean": _mean,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "topk": _topk,
}
"""By the name of torch's function; each gives None for a call that it does not take."""
