"""Where rows enter and leave a cut model: at its layers, not at its inner model's `forward`.

Cutting removes modules, but some models also do arithmetic around their layers that no module shows: Granite multiplies
its embeddings, OLMo 1 ends in a norm without weights, GPT-2 adds position embeddings and may change the dtype on the
way. In a stage behind the head rows therefore enter the first layer itself, whatever `forward` made of them, and from a
stage before the tail go the rows that its last layer returned, whatever `forward` does to them later.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn


class Edges:
    """The rows on their way through one model: `through` gives them to its first layer and takes them from its last."""

    def __init__(self) -> None:
        self._arriving: torch.Tensor | None = None
        self._leaving: torch.Tensor | None = None

    def through(self, call: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
        """`call(**inputs)`, with `inputs_embeds` given to the first layer where the model begins behind the head."""
        self._arriving = arriving = inputs.get("inputs_embeds")
        try:
            # A copy, since some classes (CTRL) scale what they are given in place.
            return call(**inputs) if arriving is None else call(**{**inputs, "inputs_embeds": arriving.clone()})
        finally:
            self._arriving = None

    def rows_through(self, inner: Callable[..., Any], inputs: Mapping[str, Any]) -> torch.Tensor:
        """Rows [T, hidden_size] that the last layer of an inner model returned. Only before the tail."""
        try:
            self.through(inner, inputs)
            rows = self._leaving
        finally:
            self._leaving = None
        if rows is None:
            raise RuntimeError("the last layer of a cut model was not called")
        return rows[0]

    def _enter(self, argument: str) -> Callable[..., Any]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (self._arriving, *args[1:]), kwargs
            return args, {**kwargs, argument: self._arriving}

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._leaving = output[0] if isinstance(output, tuple | list) else output


def open_edges(layers: nn.ModuleList, *, head: bool, tail: bool) -> Edges:
    """Edges for a model's layers, cut already. The first and the last layer are replaced by copies that share all
    weights and carry hooks of their own, so that models which share layers do not share edges."""
    edges = Edges()
    ends = {0, len(layers) - 1}
    for i in ends:
        layer = copy.copy(layers[i])
        layer.__dict__["_forward_pre_hooks"] = OrderedDict()
        layer.__dict__["_forward_pre_hooks_with_kwargs"] = OrderedDict()
        layer.__dict__["_forward_hooks"] = OrderedDict()
        layers[i] = layer
    if not head:
        argument = next(iter(inspect.signature(layers[0].forward).parameters))
        layers[0].register_forward_pre_hook(edges._enter(argument), with_kwargs=True)
    if not tail:
        layers[-1].register_forward_hook(edges._leave)
    return edges
