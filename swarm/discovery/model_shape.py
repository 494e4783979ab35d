"""Sizes of a model as the planner wants them, from its manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from swarm.model.files.keys import key_numbers, layer_kinds
from swarm.model.files.manifest import Manifest, TensorEntry, is_embedding, layer_of
from swarm.model.files.packable import encoded_packs, is_cut, packs, packs_encoded, stack_bytes
from swarm.model.files.schemes import Weight, weights_of
from swarm.model.files.ties import SHARED_BLOCK, end_of
from swarm.model.linear.sizes import keeps_keys, layer_states
from swarm.model.quant.formats import blocks_format, find_format
from swarm.model.quant.native import library
from swarm.model.rows import Layout
from swarm.planner.api import ModelShape

_PLANNED = Layout(scratch=192, context=1 << 20)
"""What sessions are planned for: as many scratch slots as a run asks for; the context matters when it is tiny."""


def model_shape(manifest: Manifest, dtype: torch.dtype, weights: str = "expanded") -> ModelShape:
    """What each layer weighs in memory, what its KV takes, and what the ends hold besides.

    weights: of `load_block`; what it expands counts as `dtype`, what stays as stored with its bytes as held.
    """
    size, ties = dtype.itemsize, manifest.ties
    sources = frozenset(ties.shares.values())
    held: dict[int | None, int] = {}
    whole: dict[int, int] = {}
    table = shared = first = drafting = blocks = 0
    heads = {entry.name for entry in manifest.mtp_tensors}
    kept = manifest.mtp.held if manifest.mtp is not None else frozenset[str]()
    for weight in weights_of(manifest).values():
        tensor = weight.entry
        stored = {part.name for part in weight.parts.values()}
        if stored & heads:
            drafting += weight_bytes(weight, manifest.config, dtype, weights) if stored & kept else 0
            continue
        layer = layer_of(tensor.name)
        count = weight_bytes(weight, manifest.config, dtype, weights)
        place = end_of(tensor.name, ties) if layer is None else None
        if place == "every":
            shared += count  # a range holds its layers' part of these
        elif place == "head":
            first += count
        elif layer in sources and f".{SHARED_BLOCK}." in tensor.name:
            blocks += count
        else:
            held[layer] = held.get(layer, 0) + count
            if layer is not None and not is_cut(weight, manifest.config, weights):
                whole[layer] = whole.get(layer, 0) + count
        if is_embedding(tensor.name) and len(tensor.shape) == 2 and tensor.shape[0] == manifest.vocab_size:
            table = count
    ends, table = held.get(None, 0), table or manifest.hidden_size * manifest.vocab_size * size
    head, tail = table, max(0, ends if _tied(manifest) else ends - table)
    if ties.embeds:  # every block has the table
        head, tail = first, ends
    if drafting:  # a tail's own, with the table that it looks drawn tokens up in
        tail += drafting + table
    parts = max(0, shared - table) // manifest.n_layers if ties.embeds else 0
    keyless = {layer for layer, kind in enumerate(layer_kinds(manifest)) if not keeps_keys(kind)}
    widths = key_numbers(manifest)
    return ModelShape(
        name=manifest.model,
        layer_bytes=tuple(held.get(layer, 0) + parts for layer in range(manifest.n_layers)),
        hidden_size=manifest.hidden_size,
        kv_bytes=max(widths) * size,
        head_bytes=head,
        tail_bytes=tail,
        wire_bytes=manifest.row_width * size,
        digest=manifest.digest,
        keyless=frozenset(keyless | set(ties.reads)),
        state_bytes=_state_bytes(manifest, size),
        key_bytes=() if len(set(widths)) == 1 else tuple(width * size for width in widths),
        every_bytes=table + blocks if ties.embeds else 0,  # of shared blocks all: a few layers use each
        forbidden=ties.forbidden,
        whole_bytes=tuple(whole.get(layer, 0) + parts for layer in range(manifest.n_layers)),
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
    stack = None if weights == "expanded" else stack_bytes(weight, config, weights == "stored")
    if stack is not None:
        return stack
    if encoding is None:
        return held_bytes(tensor, config, dtype, weights)
    if weights != "expanded" and len(tensor.shape) == 2:
        form = blocks_format(encoding.kernel_format)
        if packs_encoded(weight, config) and form is not None and lib is not None:
            return lib.packed_bytes(form.number, tensor.shape[0], tensor.shape[1])
        if weights == "stored" and encoded_packs(weight, config):
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
