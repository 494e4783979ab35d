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
from swarm.model.linear.shapes import PLAIN_KINDS, POOLED_KINDS, RECURRENT_KINDS
from swarm.model.nearest import nearest
from swarm.model.per_layer import AROUND, KEPT, blank, cut_tables, join_tables
from swarm.model.quant.modules import PackedEmbedding
from swarm.model.unread import unread

_LISTS = ("layers", "h", "blocks", "block", "layer")
_AFTER = ("OPTDecoder.final_layer_norm", "OPTDecoder.project_out", "BigBirdPegasusDecoder.layernorm_embedding")
"""Modules that are used behind the layers though they are made before them or named like those of `_BEFORE`."""
_BEFORE = ("layernorm_embedding",)
"""Modules that are made behind the layers and used before them (BART and those made from it)."""
_INTO_ROWS = ("project_in", "embeddings_project", "embedding_hidden_mapping_in")
"""Linear layers that widen embeddings to rows (OPT, Electra, RemBERT)."""
_INDEXED_KINDS = {"indexed_attention", "minimax_m3_sparse"}
_KINDS = (
    {"full_attention", "sliding_attention", "chunked_attention"}
    | _INDEXED_KINDS
    | RECURRENT_KINDS
    | PLAIN_KINDS
    | POOLED_KINDS
)

_TEXT_WITHOUT = ("phi4_multimodal",)
_OTHER_HALVES = ("embed_tokens_extend",)
"""Types that take pictures and sound beside text, and the modules in which they do: text alone goes round them."""

_ROTATION = ("roformersinusoidalpositionalembedding",)
"""Embeddings whose rows every layer rotates by. They are worked out, so each stage has them."""

BY_LAYER = ("layer_types", "layer_rope_theta", "indexer_types")
"""Lists of a config with an entry a layer, that a forward looks into."""


class PassedBy(nn.Module):
    """In the place of a layer that text alone does not go through (cross-attention to a picture)."""

    def forward(self, hidden_states: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        return hidden_states


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

    def forward(self, *given: Any, **named: Any) -> torch.Tensor:
        tensors = [x for x in (*given, *named.values()) if isinstance(x, torch.Tensor)]
        return torch.zeros(1, dtype=self.dtype, device=tensors[0].device if tensors else None)


class BlankRows(nn.Module):
    """In the place of an embedding that is called for rows which already hold it."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.width, self.dtype = width, dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*ids.shape, self.width, dtype=self.dtype, device=ids.device)


class ArrivedRows(nn.Module):
    """In the place of what makes rows of token ids or of narrower rows: gives the rows back that it is given."""

    def forward(self, *given: Any, **named: Any) -> torch.Tensor:
        return next(  # a class that hands no rows in fails here and is refused
            x for x in (*given, *named.values()) if isinstance(x, torch.Tensor) and x.is_floating_point()
        )


def inner_model(model: nn.Module) -> nn.Module:
    """The part of a causal language model that turns rows into rows (`model.model`, `model.transformer`)."""
    return getattr(model, inner_name(model))  # type: ignore[no-any-return]


def inner_name(model: nn.Module) -> str:
    """Its name; Llama 4's class states one that its module does not have."""
    stated = str(getattr(model, "base_model_prefix", ""))
    return "model" if stated not in model._modules and "model" in model._modules else stated


def layer_list(model: nn.Module, name: str) -> tuple[str, nn.ModuleList]:
    """Name and modules of the layers. Raises ModelError when the inner model is not built around one list."""
    *_, (holder, listed) = layer_path(model, name)
    layers = holder._modules[listed]
    assert isinstance(layers, nn.ModuleList)
    return listed, layers


def layer_path(model: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """The way from the inner model to the list of layers: modules, each with the name of its child on the way. One step
    for most classes; in those that come from encoders the list lies deeper (`bert.encoder.layer`,
    `model.decoder.layers`). Raises ModelError when there is not exactly one list."""
    inner = model._modules.get(inner_name(model))
    found = [] if inner is None else _lists(inner)
    if len(found) != 1:
        raise unfit(name, "its layers are not one list in its inner model")
    return found[0]


def _lists(module: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    children = [(k, m) for k, m in module.named_children() if k not in AROUND and (k in _LISTS or _has_parameters(m))]
    own = [k for k, m in children if isinstance(m, nn.ModuleList)]
    if own:
        return [[(module, k)] for k in own] if len(own) > 1 or own[0] in _LISTS else []
    return [[(module, k), *path] for k, m in children for path in _lists(m)]


def unfit(name: str, why: str) -> ModelError:
    """The refusal of a class, with the nearest family that works."""
    return ModelError(
        f"{name} cannot be cut into blocks: {why}; use another architecture, the nearest that works is "
        f"{nearest(name).told} (docs/models.md has all)"
    )


def check_config(config: object, name: str) -> None:
    """Refuse what the config already shows. Raises ModelError."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds <= _KINDS:
        raise unfit(name, f"it has layers of kind {', '.join(sorted(kinds - _KINDS))}")
    pictures = any(getattr(config, part, None) is not None for part in ("vision_config", "audio_config"))
    if pictures and getattr(config, "model_type", None) not in _TEXT_WITHOUT:
        raise unfit(name, "it takes pictures or sound as well as text")
    if getattr(config, "hidden_size_per_layer_input", 0) and not hasattr(type(config), "kv_sharing_modes"):
        raise unfit(name, "its layers look up the token ids themselves, in a way that is not known here")
    if getattr(config, "hidden_size_per_layer_input", 0):
        _check_table(config, name)
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
        raise unfit(name, "it has an encoder")
    if getattr(config, "use_bidirectional_attention", None) not in (None, False, "vision"):  # of pictures alone
        raise unfit(name, "its attention is not causal")
    if getattr(config, "reorder_and_upcast_attn", False):
        raise unfit(name, "it computes attention in an order of its own")
    if (ignored := unread(config)) is not None:
        raise unfit(name, ignored)


def _check_table(config: Any, name: str) -> None:
    """Refuse a table of all layers' inputs that lacks token ids; Gemma 3n looks the first one up for those."""
    rows = getattr(config, "vocab_size_per_layer_input", config.vocab_size)
    if rows < config.vocab_size and config.model_type != "gemma3n_text":
        vocab = config.vocab_size
        raise unfit(
            name, f"its layers look up {rows} token ids (vocab_size_per_layer_input), its vocabulary has {vocab}"
        )


class KeptLayers(nn.ModuleList):
    """The layers of a cut model. Models go through `layers[: n]` in every pass, and of a plain list that is a module
    made anew: a hundredth of a small model's pass. Here all of them are the list itself."""

    def __getitem__(self, index: Any) -> Any:
        whole = isinstance(index, slice) and range(len(self))[index] == range(len(self))
        return self if whole else super().__getitem__(index)


def cut(model: nn.Module, shape: LayerRange, offset: int = 0) -> None:
    """Keep layers [first, last) and the ends that the range reaches. Mutates the top and the inner model only.

    offset: number of the first layer that `model` still has.
    """
    name = type(model).__name__
    inner, path = inner_model(model), layer_path(model, name)
    _pass_by(inner, layer_list(model, name)[1])
    whole_list = layer_list(model, name)[1]
    table = model.get_input_embeddings()  # type: ignore[operator]
    kept = KEPT if shape.ties.embeds else frozenset[str]()
    if shape.ties.embeds and getattr(model.config, "hidden_size_per_layer_input", None):
        if not kept <= set(inner._modules):
            raise unfit(name, "its layers look up the token ids themselves, in a way that is not known here")
        cut_tables(inner, shape.first - offset, shape.last - offset, len(whole_list))
    for child in _OTHER_HALVES:
        if inner._modules.get(child) is not None:
            inner._modules[child] = ArrivedRows()
    for holder, on_the_way in path:
        before, after = _around(holder, on_the_way)
        if STREAMS_IN in after:
            after.remove(STREAMS_IN)
            if shape.first > 0:
                holder._modules[STREAMS_IN] = blank(holder.get_submodule(STREAMS_IN))
        if shape.first > 0:
            for child in before:
                if child not in kept and shape.ties.by_token and holder._modules[child] is table:
                    weight: Any = holder.get_submodule(child).weight  # of a table as stored, its sizes alone
                    holder._modules[child] = BlankRows(weight.shape[1], weight.dtype)
                elif child not in kept:
                    _neutralise(holder, child, table, name)
        if shape.last < shape.n_layers:
            for child in after:
                module = holder._modules[child]
                if module is not None and child not in kept and _has_parameters(module):
                    holder._modules[child] = blank(module)
    path[-1][0]._modules[path[-1][1]] = KeptLayers(list(whole_list)[shape.first - offset : shape.last - offset])
    whole: Any = model
    if shape.first > 0 and not shape.ties.embeds:
        whole.get_input_embeddings = _nothing
    if shape.last < shape.n_layers:
        for child, module in list(model.named_children()):
            if module is not inner:
                model._modules[child] = nn.Identity()
        whole.get_output_embeddings = _nothing
    if hasattr(inner, "first_kv_shared_layer_idx"):
        setattr(inner, "first_kv_shared_layer_idx", -1)  # noqa: B010  (where Gemma 4 drops rows that want no logits)
    short: Any = _shorten(model.config, shape, offset)
    model.config = short
    for holder, _ in path:
        if hasattr(holder, "config"):
            holder.config = short


def _pass_by(inner: Any, layers: nn.ModuleList) -> None:
    """Mllama leaves layers out where there is no picture, by their places in the whole model."""
    for place in getattr(inner, "cross_attention_layers", None) or ():
        layers[place] = PassedBy()
        inner.cross_attention_layers = []


def _around(holder: nn.Module, listed: str) -> tuple[list[str], list[str]]:
    """Children of a module that work before and behind the one that holds the layers."""
    names = [child for child, _ in holder.named_children()]
    place = names.index(listed)
    behind = {child for child in names if f"{type(holder).__name__}.{child}" in _AFTER}
    before = [child for i, child in enumerate(names) if child not in behind and (i < place or child in _BEFORE)]
    return before, [child for child in names if child not in before and child != listed]


def _nothing() -> None:
    """What a model says of an embedding or a head that it does not have."""
    return None


def join(parts: Sequence[nn.Module], shape: LayerRange, config: Any) -> nn.Module:
    """One model of range `shape` from models cut to ranges that follow each other. The first one is changed and
    returned. config: of the whole model."""
    model, tail = parts[0], parts[-1]
    if len(parts) == 1:
        return model
    inner, name = inner_model(model), type(model).__name__
    path, last_path = layer_path(model, name), layer_path(tail, name)
    layers = [layer for part in parts for layer in layer_list(part, name)[1]]
    for (holder, listed), (last_holder, _) in zip(path, last_path, strict=True):
        for child in _around(holder, listed)[1]:
            if child != STREAMS_IN and not (shape.ties.embeds and child in KEPT):
                holder._modules[child] = last_holder._modules[child]
    path[-1][0]._modules[path[-1][1]] = KeptLayers(layers)
    if shape.ties.embeds:
        join_tables([inner_model(part) for part in parts])
    for child, module in list(model.named_children()):
        if module is not inner:
            model._modules[child] = tail._modules[child]
    if shape.last == shape.n_layers:
        model.__dict__.pop("get_output_embeddings", None)
    short: Any = _shorten(config, shape, 0)
    short._attn_implementation = tail.config._attn_implementation  # type: ignore[union-attr]
    model.config = short
    for holder, _ in path:
        if hasattr(holder, "config"):
            holder.config = short
    if shape.first == 0 and shape.last == shape.n_layers and config.tie_word_embeddings:
        head, table = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[operator]
        if isinstance(table, PackedEmbedding):
            head.matrix = table.matrix
        elif isinstance(head, nn.Linear) and torch.equal(
            head.weight, table.weight
        ):  # else the files have a head of its own, which transformers keeps
            head.weight = table.weight
    return model


def _neutralise(holder: nn.Module, child: str, table: nn.Module | None, name: str) -> None:
    module = holder._modules[child]
    if module is not None and child in _INTO_ROWS:  # whether its weights are parameters or held in another order
        holder._modules[child] = ArrivedRows()
        return
    if module is None or not _has_parameters(module):
        return
    kind = type(module).__name__.lower()
    if module is table:
        holder._modules[child] = nn.Identity()  # rows come as inputs_embeds, so it is never called
    elif table is not None and any(one is table for one in module.modules()):
        holder._modules[child] = ArrivedRows()
    elif isinstance(module, nn.Embedding):
        if kind not in _ROTATION:
            holder._modules[child] = ZeroRows(module.weight.dtype)
    elif "norm" in kind and "embed" in child:
        holder._modules[child] = nn.Identity()
    else:
        raise unfit(name, f"{child} stands before its layers and is neither an embedding nor an embedding's norm")


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _shorten(config: Any, shape: LayerRange, offset: int) -> Any:
    """The config with per-layer lists cut like the layers; forwards look things up by place in the list."""
    short = copy.copy(config)
    for key in BY_LAYER:
        if isinstance(kinds := getattr(config, key, None), list | tuple):
            _settle(short, key, list(kinds)[shape.first - offset : shape.last - offset])
    short.num_hidden_layers = shape.last - shape.first
    if isinstance(getattr(short, "num_layers", None), int):  # LongCat counts its layers and their attentions
        short.num_layers = shape.last - shape.first
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
