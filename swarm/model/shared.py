"""Weights that several layers share (Zamba's transformer blocks), held once however many layers use them.

Each layer keeps modules of its own down to its attention, which know the layer's number, and hangs the same parts with
weights into them. While a range is read only the first layer that uses a block has these parts, so none is read twice.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from swarm.base.errors import ModelError
from swarm.model.files.ties import SHARED_BLOCK, Ties

_ATTENTION = "self_attn"


class Elsewhere(nn.Module):
    """In the place of a part that another layer of the range has."""


def holders(ties: Ties, first: int, last: int) -> dict[int, int]:
    """Layer of [first, last) that uses another's block -> the layer of the range that has it, if not itself."""
    having: dict[int, int] = {}
    found = {}
    for layer in range(first, last):
        source = ties.shares.get(layer, layer)
        if source in ties.shares.values():
            found[layer] = having.setdefault(source, layer)
    return {layer: holder for layer, holder in found.items() if layer != holder}


def let_go(layers: nn.ModuleList, ties: Ties, first: int) -> None:
    """Leave every shared part with the first layer that uses it. first: the number of the first of `layers`."""
    for layer in holders(ties, first, first + len(layers)):
        for shell in _shells(layers[layer - first]):
            for name, part in list(shell._modules.items()):
                if name != _ATTENTION and part is not None:
                    shell._modules[name] = Elsewhere()


def hang_in(layers: nn.ModuleList, ties: Ties, first: int) -> None:
    """Give every layer the parts that it shares, and tell what it calls which layer of the model it is: it looks its
    adapters up by that."""
    for layer, holder in holders(ties, first, first + len(layers)).items():
        pairs = zip(_shells(layers[layer - first]), _shells(layers[holder - first]), strict=True)
        for mine, theirs in pairs:
            for name in mine._modules:
                if name != _ATTENTION:
                    mine._modules[name] = theirs._modules[name]
    for number, module in enumerate(layers, first):
        if (block := module._modules.get(SHARED_BLOCK)) is not None:
            block.register_forward_pre_hook(_numbered(number), with_kwargs=True)


def looks_back(layers: nn.ModuleList) -> bool:
    """Do layers take the embeddings of their rows' tokens besides?"""
    return any("original_hidden_states" in inspect.signature(layer.forward).parameters for layer in layers)


def _shells(layer: nn.Module) -> list[nn.Module]:
    block = layer.get_submodule(SHARED_BLOCK)
    return [block, block.get_submodule(_ATTENTION)]


def _numbered(layer: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        return args, {**kwargs, "layer_idx": layer}

    return hook


def untie(model: Any, inner: Any) -> None:
    """Forget which layers of the whole model transformers would tie: their numbers are not those of a range."""
    inner._tied_weights_keys = {}
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    model.all_tied_weights_keys = {key: value for key, value in tied.items() if SHARED_BLOCK not in key}


def target_layer(name: str, layer: int, ties: Ties, first: int, last: int) -> int | None:
    """The layer of a range [first, last) that a stored tensor of `layer` is for; None for one that no layer takes."""
    if f".{SHARED_BLOCK}." not in name or not ties.shares:
        return layer
    users = [user for user in range(first, last) if ties.shares.get(user, user) == ties.shares.get(layer, layer)]
    return users[0] if users and layer not in ties.shares else None


def check_copy(name: str, layer: int, ties: Ties, read: Callable[[str], torch.Tensor], model: str) -> None:
    """A tensor that a file has for a layer that shares another's. Raises ModelError unless it is the same."""
    source = name.replace(f".{layer}.", f".{ties.shares[layer]}.", 1)
    if not torch.equal(read(name), read(source)):
        raise ModelError(f"{model} has {name} unlike {source}, though its config says that these layers share a block")
