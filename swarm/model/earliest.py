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
    """The `count` best scores and their places along `dim`, as `topk`; of equal ones those that come first. Of places
    at -inf, which nobody sees, any."""
    if count >= scores.shape[dim]:
        value, place = scores.topk(count, dim)
        return value, place
    value, place = scores.topk(count + 1, dim)
    last, next_best = value.narrow(dim, count - 1, 1), value.narrow(dim, count, 1)
    if bool(((last == next_best) & (next_best > float("-inf"))).any()):
        value, place = torch.sort(scores, dim=dim, descending=True, stable=True)
    return value.narrow(dim, 0, count), place.narrow(dim, 0, count)


class TakeEarliest(TorchFunctionMode):
    """While a class's own code picks: its `topk` takes the earliest of equal ones."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not torch.Tensor.topk and func is not torch.topk:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("input", "k", "dim"), args, strict=False)) | dict(kwargs or {})
        return torch.return_types.topk(earliest(given["input"], int(given["k"]), int(given.get("dim", -1))))
