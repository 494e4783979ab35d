"""Cutting a transformers model to a layer range, and refusing by name what cannot be cut.

A model fits when its inner model is: modules that turn ids into rows, one list of layers, modules that work row by
row. Rows enter and leave at the layers (see edges.py), so what stands before and behind them need only run without its
weights: an embedding that is added becomes zeros, a norm and everything behind the layers become identity; the head
goes. Whether a class keeps to that is tried when a block is loaded (see guard.py).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from swarm.base.errors import ModelError
from swarm.model.files.ties import STREAMS_IN, Ties
from swarm.model.linear.shapes import PLAIN_KINDS, RECURRENT_KINDS
from swarm.model.per_layer import AROUND, KEPT, blank, cut_tables, join_tables
from swarm.model.quant.modules import PackedEmbedding

_LISTS = ("layers", "h", "blocks", "block")
_INDEXED_KINDS = {"indexed_attention", "minimax_m3_sparse"}
_KINDS = {"full_attention", "sliding_attention", "chunked_attention"} | _INDEXED_KINDS | RECURRENT_KINDS | PLAIN_KINDS

_BY_LAYER = ("layer_types", "layer_rope_theta", "indexer_types")
"""Lists of a config with an entry a layer, that a forward looks into."""


@dataclass(frozen=True)
class LayerRange:
    """A layer range [first, last) of a model and the sizes of its rows: hidden_size of those between layers."""

    first: int
    last: int
    n_layers: int
    hidden_size: int
    vocab_size: int
    ties: Ties = Ties()

    def within(self, first: int, last: int) -> LayerRange:
        return replace(self, first=first, last=last)


class ZeroRows(nn.Module):
    """In the place of an embedding that is added to rows which already hold it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, ids: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        return torch.zeros(1, dtype=self.dtype, device=ids.device)


def inner_model(model: nn.Module) -> nn.Module:
    """The part of a causal language model that turns rows into rows (`model.model`, `model.transformer`)."""
    return getattr(model, inner_name(model))  # type: ignore[no-any-return]


def inner_name(model: nn.Module) -> str:
    """Its name; Llama 4's class states one that its module does not have."""
    stated = str(getattr(model, "base_model_prefix", ""))
    return "model" if stated not in model._modules and "model" in model._modules else stated


def layer_list(model: nn.Module, name: str) -> tuple[str, nn.ModuleList]:
    """Name and modules of the layers. Raises ModelError when the inner model is not built around one list."""
    inner = model._modules.get(inner_name(model))
    children = [] if inner is None else inner.named_children()
    lists = [(k, m) for k, m in children if isinstance(m, nn.ModuleList) and k not in AROUND]
    lists = [(k, m) for k, m in lists if k in _LISTS or _has_parameters(m)]
    if len(lists) != 1 or lists[0][0] not in _LISTS:
        raise unfit(name, "its layers are not one list in its inner model")
    return lists[0]


def unfit(name: str, why: str) -> ModelError:
    return ModelError(f"{name} cannot be cut into blocks: {why}; use another architecture, such as Llama or Qwen")


def check_config(config: object, name: str) -> None:
    """Refuse what the config already shows. Raises ModelError."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds <= _KINDS:
        raise unfit(name, f"it has layers of kind {', '.join(sorted(kinds - _KINDS))}")
    if any(getattr(config, part, None) is not None for part in ("vision_config", "audio_config")):
        raise unfit(name, "it takes pictures or sound as well as text")
    if getattr(config, "hidden_size_per_layer_input", 0) and not hasattr(type(config), "kv_sharing_modes"):
        raise unfit(name, "its layers look up the token ids themselves, in a way that is not known here")
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
        raise unfit(name, "it has an encoder")
    if getattr(config, "use_bidirectional_attention", None) not in (None, False, "vision"):  # of pictures alone
        raise unfit(name, "its attention is not causal")
    if getattr(config, "reorder_and_upcast_attn", False):
        raise unfit(name, "it computes attention in an order of its own")


def cut(model: nn.Module, shape: LayerRange, offset: int = 0) -> None:
    """Keep layers [first, last) and the ends that the range reaches. Mutates the top and the inner model only.

    offset: number of the first layer that `model` still has.
    """
    name = type(model).__name__
    inner = inner_model(model)
    listed, layers = layer_list(model, name)
    inner._modules[listed] = nn.ModuleList(list(layers)[shape.first - offset : shape.last - offset])
    names = [child for child, _ in inner.named_children()]
    before, after = names[: names.index(listed)], names[names.index(listed) + 1 :]
    kept = KEPT if shape.ties.by_token else frozenset[str]()
    if shape.ties.by_token:
        if not kept <= set(names):
            raise unfit(name, "its layers look up the token ids themselves, in a way that is not known here")
        cut_tables(inner, shape.first - offset, shape.last - offset, len(layers))
    if STREAMS_IN in after:
        after.remove(STREAMS_IN)
        if shape.first > 0:
            inner._modules[STREAMS_IN] = blank(inner.get_submodule(STREAMS_IN))
    if shape.first > 0:
        for child in before:
            if child not in kept:
                _neutralise(inner, child, model, name)
    if shape.last < shape.n_layers:
        for child in after:
            module = inner._modules[child]
            if module is not None and child not in kept and _has_parameters(module):
                inner._modules[child] = blank(module)
        for child, module in list(model.named_children()):
            if module is not inner:
                model._modules[child] = nn.Identity()
    if hasattr(inner, "first_kv_shared_layer_idx"):
        setattr(inner, "first_kv_shared_layer_idx", -1)  # noqa: B010  (where Gemma 4 drops rows that want no logits)
    short: Any = _shorten(model.config, shape, offset)
    model.config = inner.config = short


def join(parts: Sequence[nn.Module], shape: LayerRange, config: Any) -> nn.Module:
    """One model of range `shape` from models cut to ranges that follow each other. The first one is changed and
    returned. config: of the whole model."""
    model, tail = parts[0], parts[-1]
    if len(parts) == 1:
        return model
    inner, last_inner = inner_model(model), inner_model(tail)
    listed, _ = layer_list(model, type(model).__name__)
    layers = [layer for part in parts for layer in getattr(inner_model(part), listed)]
    names = [child for child, _ in inner.named_children()]
    inner._modules[listed] = nn.ModuleList(layers)
    for child in names[names.index(listed) + 1 :]:
        if child != STREAMS_IN and not (shape.ties.by_token and child in KEPT):
            inner._modules[child] = last_inner._modules[child]
    if shape.ties.by_token:
        join_tables([inner_model(part) for part in parts])
    for child, module in list(model.named_children()):
        if module is not inner:
            model._modules[child] = tail._modules[child]
    short: Any = _shorten(config, shape, 0)
    short._attn_implementation = tail.config._attn_implementation  # type: ignore[union-attr]
    model.config = inner.config = short
    if shape.first == 0 and shape.last == shape.n_layers and config.tie_word_embeddings:
        head, table = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[operator]
        if isinstance(table, PackedEmbedding):
            head.matrix = table.matrix
        else:
            head.weight = table.weight
    return model


def _neutralise(inner: nn.Module, child: str, model: nn.Module, name: str) -> None:
    module = inner._modules[child]
    if module is None or not _has_parameters(module):
        return
    kind = type(module).__name__.lower()
    if module is model.get_input_embeddings():  # type: ignore[operator]
        inner._modules[child] = nn.Identity()  # rows come as inputs_embeds, so it is never called
    elif isinstance(module, nn.Embedding):
        inner._modules[child] = ZeroRows(module.weight.dtype)
    elif "norm" in kind and "embed" in child:
        inner._modules[child] = nn.Identity()
    else:
        raise unfit(name, f"{child} stands before its layers and is neither an embedding nor an embedding's norm")


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _shorten(config: Any, shape: LayerRange, offset: int) -> Any:
    """The config with per-layer lists cut like the layers; forwards look things up by place in the list."""
    short = copy.copy(config)
    for key in _BY_LAYER:
        if isinstance(kinds := getattr(config, key, None), list | tuple):
            _settle(short, key, list(kinds)[shape.first - offset : shape.last - offset])
    short.num_hidden_layers = shape.last - shape.first
    return short


def _settle(config: Any, name: str, value: list[Any]) -> None:
    """Give a config a list that its class may work out from numbers of the whole model (Jamba, Bamba, Falcon-H1), which
    are wrong for a range."""
    kind = type(config)
    names = (name, "layers_block_type") if name == "layer_types" else (name,)
    derived = {n: value for n in names if isinstance(getattr(kind, n, None), property)}
    if derived:
        config.__class__ = type(kind.__name__, (kind,), derived)
    else:
        setattr(config, name, value)
