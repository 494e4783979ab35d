"""Which of several positions that score the same an index takes: the earliest.

`topk` leaves that open, and on a CPU it follows from how many positions a row was given and what the others score: a
text at once, the same text token by token, and a draft beside others got other positions. Scores of an index tie often:
each head's is cut off at zero, so all positions that no head looks for score zero to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


def earliest(scores: torch.Tensor, count: int, dim: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` best scores and their places along `dim`, best first; of equal ones those that come first. What
    sorting all of them without moving equal ones begins with, at the price of `topk` where no two are equal."""
    line = scores.transpose(dim, -1)
    value, place = line.topk(min(count + 1, line.shape[-1]), -1)
    if bool(value.isnan().any()):
        value, place = torch.sort(line, dim=-1, descending=True, stable=True)
    elif bool((value[..., 1:] == value[..., :-1]).any()) and count:
        value, place = _in_order(line, value[..., count - 1 : count], count)
    return value[..., :count].transpose(dim, -1), place[..., :count].transpose(dim, -1)


def _in_order(line: torch.Tensor, last: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of lines with equal numbers, whose `count` best ones end with `last`."""
    above, edge = line > last, line == last
    wanted = above | edge & (edge.cumsum(-1) <= count - above.sum(-1, keepdim=True))
    place = wanted.nonzero()[:, -1].view(*line.shape[:-1], count)  # in the order of the line
    value, order = torch.sort(line.gather(-1, place), dim=-1, descending=True, stable=True)
    return value, place.gather(-1, order)


class TakeEarliest(TorchFunctionMode):
    """While a class's own code picks: its `topk` takes the earliest of equal ones."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not torch.Tensor.topk and func is not torch.topk:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("input", "k", "dim"), args, strict=False)) | dict(kwargs or {})
        return torch.return_types.topk(earliest(given["input"], int(given["k"]), int(given.get("dim", -1))))
