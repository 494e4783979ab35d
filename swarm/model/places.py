"""Embeddings of positions that are a row's own.

Many older classes count the places of a forward's rows themselves: from zero, from what a cache holds, or from the
padding in the text. Where a module takes positions it gets those of the rows; RoBERTa and those made from it count from
behind the number of their padding token, as their own code does for a text without padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from swarm.model.attention import Attending


def settle_places(inner: nn.Module, layers: nn.ModuleList, state: Attending) -> None:
    """Give the rows' positions to every module beside the layers that takes some."""
    inside = set(layers.modules())
    for module in inner.modules():
        if module in inside or module is inner or any(one is layers for one in module.modules()):
            continue
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        if "position_ids" in names:
            hook = _hook(state, names.index("position_ids"), first_place(module))
            module.register_forward_pre_hook(hook, with_kwargs=True)


def first_place(module: nn.Module) -> int:
    """The number of a text's first position."""
    counts = hasattr(type(module), "create_position_ids_from_input_ids")
    padding = getattr(module, "padding_idx", None)
    return int(padding) + 1 if counts and isinstance(padding, int) else 0


def _hook(state: Attending, place: int, first: int) -> Callable[..., Any]:
    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if state.position is None:
            return args, kwargs
        given = args[place] if len(args) > place else kwargs.get("position_ids")
        rows = state.position + first if first else state.position
        if isinstance(given, torch.Tensor) and given.dim() > 1:
            rows = rows.expand(given.shape)
        if len(args) > place:
            return (*args[:place], rows, *args[place + 1 :]), kwargs
        return args, {**kwargs, "position_ids": rows}

    return hook
