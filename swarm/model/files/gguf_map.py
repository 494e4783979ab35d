"""GGUF tensors in the words of transformers: names, shapes, and the layout that the converter of GGUF changed.

Names come from transformers' own table, asked with a model that is built without memory; every tensor of the file
must be one that the model has, and every tensor of the model must be in the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from swarm.base.errors import ModelError
from swarm.model.files.gguf_file import READABLE, GGUFHeader, GGUFTensor
from swarm.model.files.gguf_layout import transposed
from swarm.model.files.weights import make_config
from swarm.model.quant.ggml import SCALE

_CONSUMED = ("rope_freqs.weight",)
"""Tensors that became part of the config."""

_EXPERTS = re.compile(r"(blk\.\d+\.ffn_(gate|up|down)_exps)\.weight")
_BLOCK = re.compile(r"blk\.(\d+)\.")
_SCALE = re.compile(r"(blk\.\d+\.\w+|output|token_embd)\.(input_)?scale")
"""What an NVFP4 matrix (or each of stacked experts) is multiplied by besides; what its activations were made for."""


@dataclass(frozen=True)
class Piece:
    """Bytes of a GGUF tensor that are one tensor of the model: name and shape there, offset from the file's start."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    nbytes: int
    source: GGUFTensor


def pieces(header: GGUFHeader, config: Mapping[str, Any], where: str) -> list[Piece]:
    """The model's tensors in a GGUF file. Stacked experts come apart, one piece each: that is how transformers saves
    them, and each is a run of bytes of its own. Raises ModelError naming the tensor that does not belong."""
    _check_kinds(header, where)
    _check_blocks(header, config, where)
    names, shapes = _model_names(header, config, where)
    found: dict[str, Piece] = {}
    for stored, tensor in header.tensors.items():
        if stored in _CONSUMED:
            continue
        scale = _SCALE.fullmatch(stored)
        matrix = header.tensors.get(f"{scale.group(1)}.weight") if scale else None
        if scale and matrix is not None and matrix.kind == "NVFP4":
            for piece in () if scale.group(2) else _scales(scale.group(1), tensor, matrix, names, config, where):
                found[piece.name] = piece
            continue
        for piece in _pieces(stored, tensor, names, config):
            expected = shapes.get(piece.name)
            if expected is None and stored not in names and not _EXPERTS.fullmatch(stored):
                raise ModelError(
                    f"{where} has a tensor {stored} that its architecture should not have; use safetensors"
                )
            if expected is not None and expected != piece.shape:
                raise ModelError(
                    f"{stored} in {where} has shape {list(piece.shape)}, its metadata says {list(expected)}: "
                    "the file is damaged or made for something else"
                )
            found[piece.name] = piece
    given = {names[n] for n in header.tensors if n in names} | {
        names[m.group(1)] for n in header.tensors if (m := _EXPERTS.fullmatch(n)) and m.group(1) in names
    }
    reverse = {hf: stored for stored, hf in names.items()}
    for name in shapes:
        if name not in given and not (name == "lm_head.weight" and config["tie_word_embeddings"]):
            raise ModelError(f"{where} lacks the tensor {reverse.get(name, name)}: it is not whole, or use safetensors")
    return list(found.values())


def _check_kinds(header: GGUFHeader, where: str) -> None:
    for stored, tensor in header.tensors.items():
        if tensor.kind not in READABLE:
            raise ModelError(
                f"{stored} in {where} is stored as {tensor.kind}, which cannot be read; take a file of another type, "
                "such as Q4_K_M or Q8_0"
            )


def _check_blocks(header: GGUFHeader, config: Mapping[str, Any], where: str) -> None:
    """The layers that there are must be those that the metadata says, before a model of that depth is built."""
    layers = int(config.get("num_hidden_layers", config.get("n_layer", 0)))
    held = {int(m.group(1)) for n in header.tensors if (m := _BLOCK.match(n))}
    if len(held) != layers or held != set(range(layers)):
        raise ModelError(f"{where} holds {len(held)} layers, its metadata says {layers}: it is not whole")


def _model_names(
    header: GGUFHeader, config: Mapping[str, Any], where: str
) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """GGUF name -> transformers name, and transformers name -> shape, of the model that the config describes."""
    family = str(header.metadata["general.architecture"])
    whole = make_config(config, where)
    layers = int(whole.num_hidden_layers)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(whole)]
    try:
        with torch.device("meta"):
            model = kind._from_config(whole)
        processor = TENSOR_PROCESSORS.get(family, TensorProcessor)(config=dict(config))
        names: dict[str, str] = get_gguf_hf_weights_map(model, processor, family, layers)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, ZeroDivisionError) as exc:
        raise ModelError(f"the metadata of {where} does not make a model: {exc}".splitlines()[0]) from exc
    return names, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _scales(
    stem: str, scale: GGUFTensor, matrix: GGUFTensor, names: Mapping[str, str], config: Mapping[str, Any], where: str
) -> list[Piece]:
    """The second scales of an NVFP4 matrix, or of stacked experts, one piece each."""
    modules = [p.name.removesuffix(".weight") for p in _pieces(f"{stem}.weight", matrix, names, config)]
    if scale.kind != "F32" or scale.nbytes != 4 * len(modules):
        raise ModelError(
            f"{stem}.scale in {where} is {scale.kind} of shape {list(scale.shape)}, expected {len(modules)} of F32: "
            "the file is damaged or made for something else"
        )
    return [Piece(f"{module}{SCALE}", (1,), "F32", scale.offset + 4 * i, 4, scale) for i, module in enumerate(modules)]


def _pieces(stored: str, tensor: GGUFTensor, names: Mapping[str, str], config: Mapping[str, Any]) -> list[Piece]:
    experts = _EXPERTS.fullmatch(stored)
    if experts and experts.group(1) in names and len(tensor.shape) == 3:
        layer = names[experts.group(1)].rpartition(".")[0]
        count, size = tensor.shape[0], tensor.nbytes // tensor.shape[0]
        return [
            Piece(
                f"{layer}.{i}.{experts.group(2)}_proj.weight", tensor.shape[1:], tensor.kind, tensor.offset + i * size,
                size, tensor,
            )
            for i in range(count)
        ]  # fmt: skip
    name = names.get(stored, stored)
    shape = tensor.shape
    if transposed(name, config):
        shape = shape[::-1]
    elif name.endswith(".shared_expert_gate.weight") and len(shape) == 1:
        shape = (1, *shape)
    return [Piece(name, shape, tensor.kind, tensor.offset, tensor.nbytes, tensor)]
