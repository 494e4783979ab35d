"""What ties the layers of a model together: plain data from its config, known before any weight is read.

Gemma 3n and Gemma 4 give each layer an input of its own, looked up by the row's token, and let their last layers read
the keys and values of an earlier one. So token ids travel with hidden rows, tables with a part for every layer belong
to every stage, and a stage must not begin between a layer and the one whose entries it reads.

Zamba's attention stands in a block of weights that several layers share, beside what is each layer's own, and looks at
the embedding of the row's token. So ids travel here too, and a stage reads the shared blocks that its layers use from
wherever they are stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from swarm.base.errors import ModelError
from swarm.model.files.config_classes import config_class

PER_LAYER_TABLE = "embed_tokens_per_layer"
"""[vocabulary, layers x width]: an embedding with a part for every layer."""
PER_LAYER_PROJECTION = "per_layer_model_projection"
"""[layers x width, hidden]: what every layer is given of the embedded token."""
PER_LAYER_NORM = "per_layer_projection_norm"
STREAMS_IN, STREAMS_OUT = "altup_projections", "altup_unembed_projections"
"""Gemma 3n's rows are several streams: what makes them of the embedding, and one row of them behind the layers."""

SHARED_BLOCK = "shared_transformer"
"""What several layers of Zamba share; files keep it with the first of them."""

_MOST_STREAMS = 64
"""A config of a stranger may say what it likes, and rows of so many are planned with before a weight is read."""

_EVERYWHERE = re.compile(
    rf"(?:^|\.)(?:embed_tokens|{PER_LAYER_TABLE}|{PER_LAYER_PROJECTION}|{PER_LAYER_NORM})\.weight$"
)
_STREAMS_IN = re.compile(rf"(?:^|\.){STREAMS_IN}\.")


@dataclass(frozen=True)
class Ties:
    """Of one model.

    reads     layer -> the layer before it whose keys and values it reads; it keeps none of its own
    by_token  layers look at the token ids of their rows: ids travel with hidden rows
    embeds    they look at what the embedding makes of them: every stage has the table
    selects   layer -> the layer before it whose choice of positions it takes (GLM-5)
    shares    layer -> the layer before it with whose weights it computes beside its own (Zamba)
    streams   hidden rows of the model that make up one row between its layers
    """

    reads: Mapping[int, int] = field(default_factory=dict)
    by_token: bool = False
    embeds: bool = False
    selects: Mapping[int, int] = field(default_factory=dict)
    streams: int = 1
    streams_last: bool = False
    """Do layers take and give them as [1, T, streams, hidden] (Hunyuan V4), not as [streams, 1, T, hidden]?"""
    shares: Mapping[int, int] = field(default_factory=dict)

    @cached_property
    def forbidden(self) -> frozenset[int]:
        """Layers that no stage and no block may begin with."""
        pairs = [*self.reads.items(), *self.selects.items()]
        return frozenset(cut for layer, source in pairs for cut in range(source + 1, layer + 1))

    def borrowed(self, first: int, last: int) -> frozenset[int]:
        """Layers outside of [first, last) in which weights are stored that the range shares."""
        return frozenset(self.shares[n] for n in range(first, last) if n in self.shares) - frozenset(range(first, last))

    def why(self, cut: int) -> str:
        """Why a forbidden cut is one."""
        for pairs, what in ((self.reads, "reads the keys and values"), (self.selects, "takes the choice")):
            for layer, source in sorted(pairs.items()):
                if source < cut <= layer:
                    return f"layer {layer} {what} of layer {source}"
        raise ValueError(f"layer {cut} may begin a stage")

    def parts(self, first: int, last: int) -> Sequence[tuple[int, int]]:
        """The smallest ranges that layers [first, last) can be cut into, in order."""
        cuts = [cut for cut in range(first, last + 1) if cut in (first, last) or cut not in self.forbidden]
        return list(zip(cuts, cuts[1:], strict=False))


def ties_of(config: Mapping[str, Any], model: str, most: int) -> Ties:
    """From a text model's config.json. Raises ModelError for one that its own class refuses, or that says more than
    `most` layers."""
    kind = config_class(config.get("model_type"))
    tied = hasattr(kind, "kv_sharing_modes") or "indexer_types" in getattr(kind, "__dataclass_fields__", ())
    if tied and isinstance(layers := config.get("num_hidden_layers"), int) and layers > most:
        raise ModelError(f"the config of {model} says {layers} layers, its files hold {most} tensors")
    if kind is not None and "indexer_types" in getattr(kind, "__dataclass_fields__", ()):
        streams = _few(_hyper_streams(kind, config), model)
        return Ties(selects=_selects(kind, config, model), streams=streams, streams_last=streams > 1)
    if kind is not None and kind.model_type in _SHARING:
        return Ties(shares=_shares(kind, config, model, most), by_token=True, embeds=True)
    if kind is not None and kind.model_type == "deepseek_v4":
        streams = _few(_hyper_streams(kind, config), model)
        return Ties(by_token=_hashes(kind, config, model, most), streams=streams, streams_last=streams > 1)
    if kind is None or not hasattr(kind, "kv_sharing_modes"):
        return Ties()
    try:
        whole: Any = kind.from_dict(dict(config))
        modes, kinds = list(whole.kv_sharing_modes), list(whole.layer_types)
    except Exception as exc:  # config classes validate in ways of their own
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise ModelError(f"the config of {model} does not say whose keys its layers read: {reason}") from exc
    reads: dict[int, int] = {}
    kept: dict[str, int] = {}
    for layer, (mode, attention) in enumerate(zip(modes, kinds, strict=True)):
        if mode == "store":
            kept[attention] = layer
        elif mode == "reuse":
            if attention not in kept:
                raise ModelError(f"the config of {model} has layer {layer} read keys of {attention} that none keeps")
            reads[layer] = kept[attention]
    streams = _few(getattr(whole, "altup_num_inputs", 1), model)
    looks_up = bool(getattr(whole, "hidden_size_per_layer_input", 0))
    return Ties(reads, looks_up, looks_up, {}, streams)


_SHARING = ("zamba2",)


def _shares(kind: Any, config: Mapping[str, Any], model: str, most: int) -> dict[int, int]:
    try:
        whole: Any = kind.from_dict(dict(config))
        kinds, blocks = list(whole.layer_types), int(getattr(whole, "num_mem_blocks", 1))
    except Exception as exc:  # config classes validate in ways of their own
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise ModelError(f"the config of {model} does not say which layers share a block: {reason}") from exc
    if not whole.tie_word_embeddings:  # transformers then ties nothing at all: each layer has a block of its own
        return {}
    layers = [layer for layer, name in enumerate(kinds) if name == "hybrid"]
    if blocks < 1 or len(kinds) > most:
        raise ModelError(f"the config of {model} says {blocks} shared blocks in {len(kinds)} layers")
    return {layer: layers[place % blocks] for place, layer in enumerate(layers) if place >= blocks}


def _hashes(kind: Any, config: Mapping[str, Any], model: str, most: int) -> bool:
    """Do layers choose experts by the token (DeepSeek V4's first ones)?"""
    if isinstance(layers := config.get("num_hidden_layers"), int) and layers > most:
        raise ModelError(f"the config of {model} says {layers} layers, its files hold {most} tensors")
    try:
        return "hash_moe" in kind.from_dict(dict(config)).mlp_layer_types
    except Exception as exc:  # config classes validate in ways of their own
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise ModelError(f"the config of {model} does not say how its layers choose experts: {reason}") from exc


def _few(streams: int, model: str) -> int:
    if not 1 <= streams <= _MOST_STREAMS:
        raise ModelError(f"the config of {model} makes rows of {streams} streams, expected 1 to {_MOST_STREAMS}")
    return streams


def _hyper_streams(kind: Any, config: Mapping[str, Any]) -> int:
    """Streams of a class with hyper-connections, else 1."""
    default = getattr(kind, "__dataclass_fields__", {}).get("hc_mult")
    count = config.get("hc_mult", getattr(default, "default", 1))
    return count if default is not None and isinstance(count, int) else 1


def _selects(kind: Any, config: Mapping[str, Any], model: str) -> dict[int, int]:
    try:
        types = list(kind.from_dict(dict(config)).indexer_types)
    except Exception as exc:  # config classes validate in ways of their own
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise ModelError(f"the config of {model} does not say whose choice its layers take: {reason}") from exc
    own = -1
    found = {}
    for layer, name in enumerate(types):
        if name != "shared":
            own = layer
        elif own < 0:
            raise ModelError(f"the config of {model} has layer {layer} take a choice that no layer before it makes")
        else:
            found[layer] = own
    return found


def end_of(name: str, ties: Ties) -> str | None:
    """Where a tensor outside of the layers belongs by these ties: "every" stage or the "head"; None: as usual."""
    if ties.embeds and _EVERYWHERE.search(name):
        return "every"
    return "head" if ties.streams > 1 and _STREAMS_IN.search(name) else None
