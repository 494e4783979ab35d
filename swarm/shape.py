"""Sizes of a model as the planner wants them, from its manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from swarm.model.manifest import Manifest, layer_of
from swarm.ring.plan import ModelShape


def model_shape(manifest: Manifest, dtype: torch.dtype) -> ModelShape:
    """What each layer weighs in memory as `dtype`, what its KV takes, and what the ends hold besides."""
    size = dtype.itemsize
    numbers: dict[int | None, int] = {}
    for tensor in manifest.tensors:
        layer = layer_of(tensor.name)
        numbers[layer] = numbers.get(layer, 0) + math.prod(tensor.shape)
    config = manifest.config
    ends = numbers.get(None, 0) * size
    return ModelShape(
        name=manifest.model,
        layer_bytes=tuple(numbers.get(layer, 0) * size for layer in range(manifest.n_layers)),
        hidden_size=manifest.hidden_size,
        kv_bytes=2 * _kv_width(config, manifest.hidden_size) * size,
        head_bytes=manifest.hidden_size * manifest.vocab_size * size,
        tail_bytes=max(0, ends if _tied(manifest) else ends - manifest.hidden_size * manifest.vocab_size * size),
        wire_bytes=manifest.hidden_size * size,
        digest=manifest.digest,
    )


def _tied(manifest: Manifest) -> bool:
    return not any(tensor.name.startswith("lm_head") for tensor in manifest.tensors)


def _kv_width(config: Mapping[str, Any], hidden: int) -> int:
    """Values of one key of one token: key/value heads times their size."""
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return kv_heads * int(config.get("head_dim") or hidden // heads)
