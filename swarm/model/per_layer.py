"""The parts of a model that hold something for every layer (Gemma 3n, Gemma 4), cut like the layers.

The class's own code looks ids up in one table of all layers and projects their embeddings for all of them at once. In
a range it does so over the columns (of the projection: rows) of the range's own layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from swarm.model.files.ties import PER_LAYER_NORM, PER_LAYER_PROJECTION, PER_LAYER_TABLE, STREAMS_IN, STREAMS_OUT

KEPT = frozenset({"embed_tokens", PER_LAYER_TABLE, PER_LAYER_PROJECTION, PER_LAYER_NORM})
"""Children of an inner model that every range has where layers look up token ids."""
AROUND = frozenset({STREAMS_IN, STREAMS_OUT})
"""Lists of modules that are not the layers."""

_BY_LAYER = {PER_LAYER_TABLE: 1, PER_LAYER_PROJECTION: 0}
"""Dimension of the weight that runs over the layers."""


class LayeredLinear(nn.Linear):
    """A linear layer with outputs for every layer of the model. A class of its own, so that it is not brought into an
    order of which no part can be taken."""


def cut_tables(inner: nn.Module, first: int, last: int, held: int) -> None:
    """Keep what layers [first, last) of the `held` ones need; numbers count from the first one held. Weights are views
    where they are there already."""
    for name, dim in _BY_LAYER.items():
        module = inner._modules.get(name)
        if module is None:
            continue
        weight = module.get_parameter("weight")
        width = weight.shape[dim] // held
        part = weight.detach().narrow(dim, first * width, (last - first) * width)
        inner._modules[name] = _with_weight(module, part.contiguous() if part.is_meta else part)


def part_of(target: str, tensor: torch.Tensor, first: int, last: int, n_layers: int) -> torch.Tensor:
    """Of a tensor as stored, what layers [first, last) need: a copy, so that the rest can be let go."""
    for name, dim in _BY_LAYER.items():
        if target.endswith(f".{name}.weight") and tensor.dim() == 2:
            width = tensor.shape[dim] // n_layers
            return tensor.narrow(dim, first * width, (last - first) * width).clone()
    return tensor


def join_tables(inners: Sequence[nn.Module]) -> None:
    """Give the first inner model what the others hold for their layers, which follow its own."""
    for name, dim in _BY_LAYER.items():
        parts = [module for inner in inners if (module := inner._modules.get(name)) is not None]
        if parts:
            whole = torch.cat([module.get_parameter("weight").detach() for module in parts], dim)
            inners[0]._modules[name] = _with_weight(parts[0], whole)


def blank(module: nn.Module) -> nn.Module:
    """In the place of a module whose result counts for nothing: as many parts, without weights."""
    return nn.ModuleList(nn.Identity() for _ in module) if isinstance(module, nn.ModuleList) else nn.Identity()


def _with_weight(module: nn.Module, weight: torch.Tensor) -> nn.Module:
    fresh = copy.copy(module)
    fresh.__dict__["_parameters"] = {**module._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
    if isinstance(fresh, nn.Linear):
        fresh.__class__ = LayeredLinear
        fresh.out_features = weight.shape[0]
    elif isinstance(fresh, nn.Embedding):
        fresh.embedding_dim = weight.shape[1]
    return fresh
