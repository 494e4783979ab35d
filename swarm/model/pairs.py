"""Products of rows with rows, and softmaxes over them, whose bits depend on no other row.

What stands here takes the place of torch's functions in the code of classes (`exact.InOrder`): where they mix the few
streams of a row, compute attention themselves, or score positions for an index. Sums are float32 and one chain each.
Slots come in the order of positions, so one that a row does not see, whose weight is zero, leaves no trace, wherever it
stands and however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from swarm.model.earliest import earliest
from swarm.model.inorder import addresses
from swarm.model.quant.native import Library

_KINDS = (torch.float32, torch.bfloat16)
_PANEL = 16
"""Outputs of a panel of the kernels (native/dense.h)."""
_VECTORS = 64
"""Numbers that torch takes at a time at most: four vectors of AVX-512."""


def in_vectors(func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    """A function of single numbers, over whole vectors of them; None where it takes such anyway."""
    x = args[0] if args else None
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.device.type != "cpu" or not x.numel():
        return None
    if any(isinstance(other, torch.Tensor) and other.numel() > 1 for other in args[1:]) or named.get("out") is not None:
        return None
    whole = x.dim() > 0 and x.stride(-1) == 1 and x.shape[-1] % _VECTORS == 0
    if whole or x.is_contiguous() and x.numel() % _VECTORS == 0:
        return None
    line = x.new_zeros(-(-x.numel() // _VECTORS) * _VECTORS)
    line[: x.numel()] = x.reshape(-1)
    out: torch.Tensor = func(line, *args[1:], **named)[: x.numel()].view(x.shape)
    return x.copy_(out) if named.get("inplace") else out


def product(lib: Library, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    """float32 `a @ b` of [..., rows, columns] and [..., columns, outs], whose leading sizes are broadcast; None where
    the kernels do not take them."""
    if a.dim() < 2 or b.dim() < 2 or a.dtype not in _KINDS or b.dtype not in _KINDS or a.device.type != "cpu":
        return None
    ahead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    columns, outs = b.shape[-2:]
    usual = b.stride(-2) == 1 or outs % _PANEL != 0
    # Matrices that lie [columns, outs] need not be turned twice: sixteen outputs beside each other are a panel's step.
    laid = b.transpose(-1, -2) if usual else b.view(*b.shape[:-1], -1, _PANEL).transpose(-2, -3)
    matrices = lib.scratch(laid.numel()).view(laid.shape).copy_(laid).view(-1, outs, columns)
    rows = a.float().expand(*ahead, *a.shape[-2:]).reshape(-1, *a.shape[-2:]).contiguous()
    places = torch.arange(len(matrices)).view(b.shape[:-2]).expand(ahead).reshape(-1).numpy()
    found = lib.batched(rows, addresses(matrices)[places], outs, usual=usual)
    return found.view(*ahead, *found.shape[1:])


def total(lib: Library, x: torch.Tensor) -> torch.Tensor:
    """float32 [..., 1]: sums of x [..., n], one number after the other."""
    rows = x.float().reshape(-1, x.shape[-1]).contiguous()
    return lib.linear(rows, rows.new_ones(1, rows.shape[1]), None).view(*x.shape[:-1], 1)


def softmax(lib: Library, x: torch.Tensor) -> torch.Tensor:
    """float32 softmax over the last dimension of x."""
    wide = x.float()
    wide = wide - wide.amax(-1, keepdim=True)
    found = in_vectors(torch.exp, (wide,), {})
    shares = torch.exp(wide) if found is None else found
    return shares / total(lib, shares)


def _matmul(lib: Library, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    if named or len(args) != 2 or not all(isinstance(x, torch.Tensor) for x in args):
        return None
    a, b = args
    found = product(lib, a, b)
    return None if found is None else found.to(a.dtype)


def _baddbmm(lib: Library, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    """beta * first + alpha * (batch1 @ batch2)."""
    given = dict(named)
    first = args[0]
    a, b = (*args[1:], *(given.pop(name) for name in ("batch1", "batch2") if name in given))
    beta, alpha = given.pop("beta", 1), given.pop("alpha", 1)
    found = None if given else product(lib, a, b)
    return None if found is None else (first.float() * beta + found * alpha).to(a.dtype)


def _softmax(lib: Library, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    given = dict(named)
    x, *rest = args
    dim = rest[0] if rest else given.pop("dim", None)
    dtype = given.pop("dtype", None) or (rest[-1] if len(rest) > 1 and isinstance(rest[-1], torch.dtype) else None)
    given.pop("_stacklevel", None)
    if given or not isinstance(dim, int) or x.dtype not in _KINDS:
        return None
    return softmax(lib, x.transpose(dim, -1)).transpose(dim, -1).to(dtype or x.dtype)


def _sum(lib: Library, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    given = dict(zip(("input", "dim", "keepdim"), args, strict=False)) | dict(named)
    x, dim = given.pop("input"), given.pop("dim", None)
    keep = given.pop("keepdim", False)
    if given or not isinstance(dim, int) or x.dtype not in _KINDS:
        return None
    found = total(lib, x.transpose(dim, -1)).transpose(dim, -1).to(x.dtype)
    return found if keep else found.squeeze(dim)


def _attention(lib: Library, args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    """`scaled_dot_product_attention` under a mask that is given."""
    given = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | dict(
        named
    )
    query, key, value, mask = (given.get(name) for name in ("query", "key", "value", "attn_mask"))
    if given.get("dropout_p") or given.get("is_causal") or given.get("enable_gqa") or given.get("scale") == 0:
        return None
    if not all(isinstance(x, torch.Tensor) for x in (query, key, value)):
        return None
    assert query is not None and key is not None and value is not None
    scores = product(lib, query, key.transpose(-1, -2))
    if scores is None:
        return None
    scores = scores * (given.get("scale") or query.shape[-1] ** -0.5)
    if isinstance(mask, torch.Tensor):
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.float()
    found = product(lib, softmax(lib, scores).to(query.dtype), value)
    return None if found is None else found.to(query.dtype)


def _topk(lib: Library, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """Of several that are the same, those at the nearest places of the line come first: `topk` leaves it open."""
    given = dict(zip(("input", "k", "dim", "largest"), args, strict=False)) | dict(named)
    if not given.get("largest", True):
        return None
    return torch.return_types.topk(earliest(given["input"], int(given["k"]), int(given.get("dim", -1))))


_Taken = Mapping[str, Callable[[Library, Sequence[Any], Mapping[str, Any]], Any]]

PRODUCTS: _Taken = {"matmul": _matmul, "__matmul__": _matmul, "bmm": _matmul, "baddbmm": _baddbmm}
"""By the name of torch's function; each gives None for a call that it does not take."""
OVER_SLOTS: _Taken = {"softmax": _softmax, "sum": _sum, "scaled_dot_product_attention": _attention, "topk": _topk}
"""The same of functions that go along a line of slots."""
