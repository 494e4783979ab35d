"""Sizes of a model as the planner wants them, from its manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from swarm.model.files.manifest import Manifest, TensorEntry, is_embedding, layer_of
from swarm.model.files.schemes import Weight, weights_of
from swarm.model.files.weights import packs, packs_encoded
from swarm.model.linear.sizes import keeps_keys, layer_kinds, layer_states
from swarm.model.quant.formats import find_format
from swarm.model.quant.native import library
from swarm.model.rows import Layout
from swarm.planner.api import ModelShape

_PLANNED = Layout(scratch=192, context=1 << 20)
"""What sessions are planned for: as many scratch slots as a run asks for; the context matters when it is tiny."""


def model_shape(manifest: Manifest, dtype: torch.dtype, weights: str = "expanded") -> ModelShape:
    """What each layer weighs in memory, what its KV takes, and what the ends hold besides.

    weights: of `load_block`; what it expands counts as `dtype`, what stays as stored with its bytes as held.
    """
    size = dtype.itemsize
    held: dict[int | None, int] = {}
    table = 0
    for weight in weights_of(manifest).values():
        tensor = weight.entry
        layer = layer_of(tensor.name)
        count = weight_bytes(weight, manifest.config, dtype, weights)
        held[layer] = held.get(layer, 0) + count
        if is_embedding(tensor.name) and len(tensor.shape) == 2 and tensor.shape[0] == manifest.vocab_size:
            table = count
    config = manifest.text_config
    ends, table = held.get(None, 0), table or manifest.hidden_size * manifest.vocab_size * size
    return ModelShape(
        name=manifest.model,
        layer_bytes=tuple(held.get(layer, 0) for layer in range(manifest.n_layers)),
        hidden_size=manifest.hidden_size,
        kv_bytes=_kv_numbers(config, manifest.hidden_size) * size,
        head_bytes=table,
        tail_bytes=max(0, ends if _tied(manifest) else ends - table),
        wire_bytes=manifest.hidden_size * size,
        digest=manifest.digest,
        keyless=frozenset(layer for layer, kind in enumerate(layer_kinds(manifest)) if not keeps_keys(kind)),
        state_bytes=_state_bytes(manifest, size),
    )


def _state_bytes(manifest: Manifest, size: int) -> tuple[int, ...]:
    """Per layer, for a session with the scratch slots of a run that is planned for; empty without recurrent layers."""
    states = layer_states(manifest)
    if not any(states):
        return ()
    context = min(manifest.context, _PLANNED.context)
    return tuple(sum(s.bytes(_PLANNED.scratch, context, size) for s in layer) for layer in states)


def weight_bytes(weight: Weight, config: Mapping[str, Any], dtype: torch.dtype, weights: str) -> int:
    """Bytes that a tensor of the model takes once it is loaded, whatever it is stored in."""
    tensor, encoding, lib = weight.entry, weight.encoding, library()
    if encoding is None:
        return held_bytes(tensor, config, dtype, weights)
    if weights != "expanded" and len(tensor.shape) == 2 and ".experts." not in tensor.name:
        form = find_format(f"gguf:{encoding.kernel_format}")
        if packs_encoded(weight) and form is not None and lib is not None:
            return lib.packed_bytes(form.number, *tensor.shape)
        if weights == "stored":
            return tensor.nbytes
    return math.prod(tensor.shape) * dtype.itemsize


def held_bytes(tensor: TensorEntry, config: Mapping[str, Any], dtype: torch.dtype, weights: str) -> int:
    """Bytes that a tensor takes once it is loaded."""
    form, lib = find_format(tensor.format), library()
    if weights == "expanded" or form is None or not packs(tensor, config, weights == "stored"):
        return math.prod(tensor.shape) * dtype.itemsize
    packed = 0 if lib is None else lib.packed_bytes(form.number, *tensor.shape)
    return packed or tensor.nbytes


def _tied(manifest: Manifest) -> bool:
    return not any(tensor.name.startswith("lm_head") for tensor in manifest.tensors)


_TWICE = ("diffllama", "longcat_flash")
"""Types whose layers ask for attention twice, each with keys and values of its own."""
_ONE_KEY_HEAD = ("falcon", "gpt_bigcode")
"""Types that share one key head among all, where their config says `multi_query`."""


def _kv_numbers(config: Mapping[str, Any], hidden: int) -> int:
    """Numbers in the keys and values of one token in one layer."""
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    attentions = 2 if config.get("model_type") in _TWICE else 1
    if config.get("kv_lora_rank"):  # latent attention, kept as every head sees it
        widths = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        return attentions * heads * sum(int(config.get(width) or 0) for width in widths)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    if config.get("model_type") in _ONE_KEY_HEAD and config.get("multi_query"):
        kv_heads = heads if config.get("new_decoder_architecture") else 1
    return attentions * 2 * kv_heads * int(config.get("head_dim") or hidden // heads)
