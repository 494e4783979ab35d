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
    """The rows on their way through one model: `through` gives them to its first layer and takes them from its last.

    streams: of Gemma 3n, whose layers take and give [streams, 1, T, hidden], and of classes with hyper-connections,
    whose layers do so with [1, T, streams, hidden] (streams_last); a row holds them one after the other.
    """

    def __init__(self, streams: int = 1, streams_last: bool = False) -> None:
        self._streams, self._last = streams, streams_last
        self.given: Mapping[str, Any] = {}
        """What `call` is given besides."""
        self._arriving: torch.Tensor | None = None
        self._leaving: torch.Tensor | None = None

    def through(self, call: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
        """`call(**inputs)`, with `inputs_embeds` given to the first layer where the model begins behind the head.

        Where there are `input_ids` too, `call` gets those: layers look them up.
        """
        arriving = inputs.get("inputs_embeds")
        if arriving is not None and "input_ids" in inputs:
            inputs = {name: value for name, value in inputs.items() if name != "inputs_embeds"}
        elif arriving is not None:  # a copy, since some classes (CTRL) scale what they are given in place
            inputs = {**inputs, "inputs_embeds": arriving.clone()}
        self._arriving = arriving if arriving is None else self._parted(arriving)
        try:
            return call(**inputs, **self.given)
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
        rows = output[0] if isinstance(output, tuple | list) else output
        if self._streams == 1:
            self._leaving = rows
        else:
            self._leaving = (rows if self._last else rows.permute(1, 2, 0, 3)).flatten(2)

    def _parted(self, rows: torch.Tensor) -> torch.Tensor:
        if self._streams == 1:
            return rows
        parted = rows.view(*rows.shape[:2], self._streams, -1)
        return parted if self._last else parted.permute(2, 0, 1, 3).contiguous()


class _Entered(Exception):
    """Carries what a model gave to its first layer."""


def entering(
    inner: nn.Module, first: nn.Module, ids: torch.Tensor, streams: int, streams_last: bool = False
) -> torch.Tensor:
    """What the `forward` of an inner model gives to its first layer for token ids [n]: rows [n, hidden_size]."""

    def stop(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        argument = next(iter(inspect.signature(module.forward).parameters))
        raise _Entered(args[0] if args else named[argument])

    hook = first.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        inner(input_ids=ids[None], position_ids=torch.arange(len(ids), device=ids.device)[None], use_cache=False)
    except _Entered as entered:
        rows: torch.Tensor = entered.args[0]
        if streams == 1:
            return rows[0]
        return (rows[0] if streams_last else rows[:, 0].permute(1, 0, 2)).flatten(1)
    finally:
        hook.remove()
    raise RuntimeError("the first layer of a cut model was not called")


def open_edges(layers: nn.ModuleList, *, head: bool, tail: bool, streams: int = 1, streams_last: bool = False) -> Edges:
    """Edges for a model's layers, cut already. The first and the last layer are replaced by copies that share all
    weights and carry hooks of their own, so that models which share layers do not share edges."""
    edges = Edges(streams, streams_last)
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
