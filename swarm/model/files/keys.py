"""Of which kind a model's layers are, and how much the keys and values of a token take in each, from its config: what
planning asks before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swarm.model.files.config_classes import config_class
from swarm.model.files.manifest import Manifest

_TWICE = ("diffllama", "longcat_flash")
"""Types whose layers ask for attention twice, each with keys and values of its own."""
_ONE_KEY_HEAD = ("falcon", "gpt_bigcode")
"""Types that share one key head among all, where their config says `multi_query`."""
_RENAMED = ("zamba2",)
"""Types whose files name their layers otherwise than their class does."""

FULL = "full_attention"


def layer_kinds(manifest: Manifest) -> Sequence[str]:
    """The kind of each layer, as transformers names them; attention where the config does not tell."""
    if manifest.facts is not None:
        return manifest.facts.kinds
    config = manifest.config
    kinds = config.get("layer_types") or config.get("layers_block_type")
    if kinds is not None and config.get("model_type") in _RENAMED:
        kinds = None
    if kinds is None and (kind := config_class(config.get("model_type"))) is not None:
        try:  # some classes work their layers out from other values
            kinds = getattr(kind.from_dict(dict(config)), "layer_types", None)
        except Exception:  # a config that its own class refuses: loading says why
            kinds = None
    known = kinds if isinstance(kinds, list) and len(kinds) == manifest.n_layers else [FULL] * manifest.n_layers
    return [str(kind) for kind in known]


def key_numbers(manifest: Manifest) -> tuple[int, ...]:
    """Numbers that a slot of each layer holds, were it to keep keys and values of its own."""
    if manifest.facts is not None:
        return manifest.facts.keys
    config = manifest.text_config
    each = _by_layer(config, manifest.n_layers) or (_numbers(config, manifest.hidden_size),) * manifest.n_layers
    return tuple(n + width for n, width in zip(each, _index_widths(manifest), strict=True))


def _index_widths(manifest: Manifest) -> Sequence[int]:
    """Of the key that an index keeps in each layer; 0: none."""
    config, layers = manifest.text_config, range(manifest.n_layers)
    if config.get("kv_lora_rank"):
        width = int(config.get("index_head_dim") or 0)
        return [0 if layer in manifest.ties.selects else width for layer in layers]
    if config.get("model_type") == "minimax_m3_vl_text":
        try:
            whole: Any = config_class("minimax_m3_vl_text")
            whole = whole.from_dict(dict(config))
            return [int(whole.index_head_dim) * (whole.layer_types[i] == "minimax_m3_sparse") for i in layers]
        except Exception:  # a config that its own class refuses: loading says why
            return [0] * len(layers)
    return [0] * len(layers)


def _numbers(config: Mapping[str, Any], hidden: int) -> int:
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    attentions = 2 if config.get("model_type") in _TWICE else 1
    if config.get("kv_lora_rank"):  # the latent, and the rotated part of a key
        return attentions * (int(config["kv_lora_rank"]) + int(config.get("qk_rope_head_dim") or 0))
    kv_heads = int(config.get("num_key_value_heads") or heads)
    if config.get("model_type") in _ONE_KEY_HEAD and config.get("multi_query"):
        kv_heads = heads if config.get("new_decoder_architecture") else 1
    width = config.get("head_dim") or config.get("attention_head_dim") or hidden // heads
    return attentions * 2 * kv_heads * int(width)


def _by_layer(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Of a config whose layers differ in the number and the width of heads; empty for others."""
    if config.get("model_type") == "deepseek_v4":
        try:  # one key head; where entries are pooled its keys are the values
            whole: Any = config_class("deepseek_v4")
            whole = whole.from_dict(dict(config))
            return tuple(int(whole.head_dim) * (1 + (kind == "sliding_attention")) for kind in whole.layer_types)
        except Exception:  # a config that its own class refuses: loading says why
            return ()
    if not config.get("per_layer_config") and not config.get("global_head_dim"):
        return ()
    kind = config_class(config.get("model_type"))
    if kind is None:
        return ()
    try:
        each = kind.from_dict(dict(config)).per_layer_config
        return tuple(2 * each[i].num_key_value_heads * each[i].head_dim for i in range(layers))
    except Exception:  # a config that its own class refuses: loading says why
        return ()
