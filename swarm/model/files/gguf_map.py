"""GGUF tensors in the words of transformers: names, shapes, and the layout that the converter of GGUF changed.

The model that the metadata describes is built without memory; every tensor that it has must be in the file, and every
tensor of the file must be one that it has. What their names are, `gguf_names.py` knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from swarm.base.errors import ModelError
from swarm.model.files.causal import causal_class
from swarm.model.files.gguf_config import LONG, SHORT
from swarm.model.files.gguf_file import READABLE, GGUFHeader, GGUFTensor
from swarm.model.files.gguf_layout import transposed
from swarm.model.files.gguf_names import DOWN, GATE, GATE_UP, UP, Alternative, Names, StoredPart
from swarm.model.files.weights import make_config
from swarm.model.quant.ggml import SCALE
from swarm.model.quant.joined import PART

_CONSUMED = ("rope_freqs.weight", LONG, SHORT)
"""Tensors that became part of the config."""

_BLOCK = re.compile(r"blk\.(\d+)\.")
_SCALE = re.compile(r"(blk\.\d+\.\w+|output|token_embd)\.(input_)?scale")
"""What an NVFP4 matrix (or each of stacked experts) is multiplied by besides; what its activations were made for."""

_EXPERT_ROLES = (GATE, UP, DOWN, GATE_UP)


@dataclass(frozen=True)
class Piece:
    """Bytes of a GGUF tensor that are one tensor of the model, or a part of one: name and shape there, offset from the
    file's start."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    nbytes: int
    source: GGUFTensor


def pieces(header: GGUFHeader, config: Mapping[str, Any], where: str) -> list[Piece]:
    """The model's tensors in a GGUF file. Stacked experts come apart, one piece each: that is how most checkpoints keep
    them, and each is a run of bytes of its own. Raises ModelError naming the tensor that does not belong."""
    _check_kinds(header, where)
    layers = _check_blocks(header, config, where)
    names, shapes = _model(header, config, where)
    found: dict[str, Piece] = {}
    used: set[str] = set(_CONSUMED)
    for name, shape in shapes.items():
        chosen = _choose(name, names, header, where)
        if chosen is None:
            if name == "lm_head.weight" and config["tie_word_embeddings"]:
                continue
            stored = next((each.stored for each in (names.sources(name) or [()])[0]), name)
            raise ModelError(f"{where} lacks the tensor {stored}: it is not whole, or use safetensors")
        for source in chosen:
            used.add(source.stored)
            own = _pieces(source, header.tensors[source.stored], name, shape, config, where)
            own += _scales(source.stored, own, header, used, where)
            found.update((piece.name, piece) for piece in own)
    for stored in header.tensors:
        if stored not in used and not (0 <= layers <= _layer(stored)):
            raise ModelError(f"{where} has a tensor {stored} that its architecture should not have; use safetensors")
    return list(found.values())


def _layer(stored: str) -> int:
    """The layer of a tensor; -1 outside of all."""
    return int(m.group(1)) if (m := _BLOCK.match(stored)) else -1


def _choose(name: str, names: Names, header: GGUFHeader, where: str) -> Alternative | None:
    """What of the file makes up a tensor of the model; None where it is not there."""
    for alternative in names.sources(name):
        if all(source.stored in header.tensors for source in alternative):
            return alternative
        there = [source.stored for source in alternative if source.stored in header.tensors]
        if there:
            missing = next(source.stored for source in alternative if source.stored not in header.tensors)
            raise ModelError(f"{where} lacks the tensor {missing} beside {there[0]}: it is not whole")
    return None


def _check_kinds(header: GGUFHeader, where: str) -> None:
    for stored, tensor in header.tensors.items():
        if tensor.kind not in READABLE:
            raise ModelError(
                f"{stored} in {where} is stored as {tensor.kind}, which cannot be read; take a file of another type, "
                "such as Q4_K_M or Q8_0"
            )


def _check_blocks(header: GGUFHeader, config: Mapping[str, Any], where: str) -> int:
    """The layers that there are must be those that the metadata says, before a model of that depth is built. Layers
    behind them that only predict further tokens are left alone: their first number is the answer."""
    layers = int(config.get("num_hidden_layers", config.get("n_layer", 0)))
    family = header.metadata["general.architecture"]
    further = header.metadata.get(f"{family}.nextn_predict_layers", 0)
    held = {layer for name in header.tensors if (layer := _layer(name)) >= 0}
    own = {layer for layer in held if layer < layers}
    if own != set(range(layers)) if len(held) >= layers else True:
        raise ModelError(f"{where} holds {len(held)} layers, its metadata says {layers}: it is not whole")
    if held - own - set(range(layers, layers + (further if isinstance(further, int) else 0))):
        raise ModelError(f"{where} holds {len(held)} layers, its metadata says {layers}: it is not whole")
    return layers


def _model(header: GGUFHeader, config: Mapping[str, Any], where: str) -> tuple[Names, dict[str, tuple[int, ...]]]:
    """Names of the architecture, and transformers name -> shape, of the model that the config describes."""
    family = str(header.metadata["general.architecture"])
    whole = make_config(config, where)
    layers = int(whole.num_hidden_layers)
    kind: Any = causal_class(type(whole))
    try:
        with torch.device("meta"):
            model = kind._from_config(whole)
        names = Names(family, layers)
    except Exception as exc:  # classes hold their config's numbers against each other in ways of their own
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise ModelError(f"the metadata of {where} does not make a model: {reason}") from exc
    return names, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _scales(stored: str, pieces: list[Piece], header: GGUFHeader, used: set[str], where: str) -> list[Piece]:
    """The second scales of an NVFP4 matrix, or of stacked experts, one piece each."""
    stem = stored.removesuffix(".weight")
    if pieces[0].kind != "NVFP4":
        return []
    if PART in pieces[0].name:
        raise ModelError(f"{stored} in {where} is a part of a matrix in NVFP4, which is not read; use safetensors")
    used.add(f"{stem}.input_scale")
    scale = header.tensors.get(f"{stem}.scale")
    if scale is None:
        return []
    used.add(f"{stem}.scale")
    if scale.kind != "F32" or scale.nbytes != 4 * len(pieces):
        raise ModelError(
            f"{stem}.scale in {where} is {scale.kind} of shape {list(scale.shape)}, expected {len(pieces)} of F32: "
            "the file is damaged or made for something else"
        )
    modules = [piece.name.removesuffix(".weight") for piece in pieces]
    return [Piece(f"{module}{SCALE}", (1,), "F32", scale.offset + 4 * i, 4, scale) for i, module in enumerate(modules)]


def _pieces(
    source: StoredPart, tensor: GGUFTensor, name: str, shape: tuple[int, ...], config: Mapping[str, Any], where: str
) -> list[Piece]:
    """What a stored tensor is of the model's tensor `name` of `shape`."""
    if source.role in _EXPERT_ROLES:
        return _experts(source, tensor, name, shape, where)
    if source.role:
        return [Piece(f"{name}{PART}{source.role}", tensor.shape, tensor.kind, tensor.offset, tensor.nbytes, tensor)]
    stored = tensor.shape[::-1] if transposed(name, config) else tensor.shape
    flat = len(shape) == 1 and math.prod(stored) == shape[0]  # a recurrent layer's norm, in groups
    if not flat and [n for n in stored if n != 1] != [n for n in shape if n != 1]:
        raise _unfit(source.stored, where, stored, shape)
    return [Piece(name, shape, tensor.kind, tensor.offset, tensor.nbytes, tensor)]


def _experts(source: StoredPart, tensor: GGUFTensor, name: str, shape: tuple[int, ...], where: str) -> list[Piece]:
    """The experts of a projection, one piece each."""
    joined = name.endswith("gate_up_proj")
    parts = 2 if joined and source.role != GATE_UP else 1
    fits = len(tensor.shape) == 3 and len(shape) == 3 and tensor.shape[0] == shape[0]
    if not fits or sorted(shape[1:]) != sorted((parts * tensor.shape[1], tensor.shape[2])):
        raise _unfit(source.stored, where, tensor.shape, shape)
    module, (count, out, width) = name.rpartition(".")[0], tensor.shape
    roles = (GATE, UP) if source.role == GATE_UP else (source.role,)
    size = tensor.nbytes // count // len(roles)
    return [
        Piece(
            f"{module}.{i}.{role}_proj.weight", (out // len(roles), width), tensor.kind,
            tensor.offset + (i * len(roles) + half) * size, size, tensor,
        )
        for i in range(count)
        for half, role in enumerate(roles)
    ]  # fmt: skip


def _unfit(stored: str, where: str, found: tuple[int, ...], expected: tuple[int, ...]) -> ModelError:
    return ModelError(
        f"{stored} in {where} has shape {list(found)}, its metadata says {list(expected)}: the file is damaged or made "
        "for something else"
    )
