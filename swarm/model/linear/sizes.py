"""What a model's layers keep for a session, from its config and its tensors' shapes: what planning asks before any
weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swarm.base.errors import ModelError
from swarm.model.files.config_classes import config_class
from swarm.model.files.keys import layer_kinds
from swarm.model.files.manifest import Manifest, layer_of
from swarm.model.linear.shapes import (
    PLAIN_KINDS,
    RECURRENT_KINDS,
    ConvShape,
    PoolShape,
    RuleShape,
    ScanShape,
    StateShape,
)


def layer_states(manifest: Manifest) -> Sequence[tuple[StateShape, ...]]:
    """What the recurrent operators of each layer keep."""
    convs: dict[int, ConvShape] = {}
    for entry in manifest.tensors:
        layer = layer_of(entry.name)
        if layer is None or len(entry.shape) != 3 or entry.shape[1] != 1 or "conv" not in entry.name:
            continue
        before = convs.get(layer, ConvShape(0, 0)).channels  # some files keep queries', keys' and values' apart
        convs[layer] = ConvShape(before + entry.shape[0], entry.shape[2])
    scans = {
        layer: ScanShape(*entry.shape)
        for entry in manifest.tensors
        if entry.name.endswith(".A_log") and len(entry.shape) == 2 and (layer := layer_of(entry.name)) is not None
    }
    if manifest.text_config.get("model_type") == "deepseek_v4":
        return _pooled(manifest)
    states: list[tuple[StateShape, ...]] = []
    for layer, kind in enumerate(layer_kinds(manifest)):
        rule: StateShape | None = _rule(manifest.config) if kind in RECURRENT_KINDS else None
        rule = scans.get(layer, rule)
        conv = convs.get(layer) if kind in RECURRENT_KINDS else None
        states.append(tuple(shape for shape in (conv, rule) if shape is not None))
    return states


def _pooled(manifest: Manifest) -> Sequence[tuple[StateShape, ...]]:
    try:
        whole: Any = config_class("deepseek_v4")
        whole = whole.from_dict(dict(manifest.text_config))
        rates = {kind: int(rate) for kind, rate in whole.compress_rates.items()}
        wide = int(whole.head_dim), int(whole.head_dim) + int(whole.index_head_dim)
        shapes = {
            kind: (PoolShape(rates[kind], wide[sparse], bool(sparse)),)
            for sparse, kind in enumerate(("heavily_compressed_attention", "compressed_sparse_attention"))
        }
    except ModelError:
        raise
    except Exception:  # a config that its own class refuses: loading says why
        return [()] * manifest.n_layers
    return [shapes.get(kind, ()) for kind in layer_kinds(manifest)]


def keeps_keys(kind: str) -> bool:
    """Does a layer of this kind keep keys and values?"""
    return kind not in PLAIN_KINDS and (kind not in RECURRENT_KINDS or kind == "hybrid")


def _rule(config: Mapping[str, Any]) -> RuleShape | None:
    """Of all recurrent layers of a model; None for a short convolution alone."""
    for names, decays in _NAMES:
        sizes = [config.get(name) for name in names]
        if all(isinstance(size, int) and size > 0 for size in sizes):
            keys, key, values, value = (int(size) for size in sizes if size is not None)
            return RuleShape(keys, key, values, value, key if decays else 1)
    if config.get("model_type") == "minimax":
        heads = int(config["num_attention_heads"])
        dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
        return RuleShape(heads, dim, heads, dim)
    return None


_NAMES = (
    (("linear_num_key_heads", "linear_key_head_dim", "linear_num_value_heads", "linear_value_head_dim"), False),
    (("linear_num_heads", "linear_head_dim", "linear_num_heads", "linear_head_dim"), True),
    (("mamba_n_groups", "mamba_d_state", "mamba_n_heads", "mamba_d_head"), False),
    (("n_groups", "ssm_state_size", "mamba_num_heads", "mamba_head_dim"), False),
    (("n_groups", "state_size", "num_heads", "head_dim"), False),
    (("mamba_ngroups", "mamba_d_state", "n_mamba_heads", "mamba_headdim"), False),
)
"""Names of a rule's key heads, key width, value heads and value width, and whether it has a decay for each key row."""
