"""A smaller model out of a readable one: `swarm model quantize`.

One tensor is unpacked at a time and one layer is held before it is written, a file a layer, so that nodes fetch only
what they host. Matrices of layers are rounded; norms, biases, routers and stacked experts stay. What comes out is a
folder as transformers saves it: int8 and fp8 in the words of compressed-tensors, which other engines read too; q4_k
and q8_0 in ggml's blocks (ggml.py), the embedding and the head with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from swarm.base.errors import ModelError, UsageError
from swarm.base.events import Progress, Report, silent
from swarm.model.files.files import keep
from swarm.model.files.local import INDEX
from swarm.model.files.manifest import canonical_json, layer_of
from swarm.model.files.safetensors_file import save_tensors
from swarm.model.files.schemes import Weight, find_method
from swarm.model.files.weights import FileCheckpoint
from swarm.model.quant.encoding import runs
from swarm.model.quant.kquants import quantize_q4_k

Tensors = dict[str, torch.Tensor]

_ROUTER = re.compile(r"(?:^|\.)(?:gate|router|shared_expert_gate)\.weight$|norm")
_OUTER = re.compile(r"(?:^|\.)(?:embed_tokens|embed_in|wte|word_embeddings|lm_head|embed_out)\.weight$")
_SHARD = "model-{:05d}-of-{:05d}.safetensors"


@dataclass(frozen=True)
class RoundingTarget:
    """round: a matrix [out, in] of float32 under a module's name -> tensors; None where it stays. stated: the
    quantization_config; outer: whether the embedding and the head are rounded too."""

    round: Callable[[str, torch.Tensor], Tensors | None]
    stated: Mapping[str, Any]
    outer: bool


def requantize(checkpoint: FileCheckpoint, to: str, out: Path, report: Report = silent) -> int:
    """Write the model to the new folder `out`, without a tokenizer; returns the bytes of its weights.

    Raises UsageError for a folder that is there, ModelError for a model that cannot be rounded, and OSError.
    """
    target = TARGETS[to]
    manifest = checkpoint.manifest
    if out.exists() and any(out.iterdir() if out.is_dir() else (1,)):
        raise UsageError(f"{out} is there already; name a folder that is not")
    config = {**{k: v for k, v in manifest.config.items() if k != "quantization_config"}}
    config["quantization_config"] = dict(target.stated)
    config["dtype"] = "bfloat16"
    find_method(config, manifest.model)  # refuses what could not be read again
    layers: dict[int, list[Weight]] = {}
    for weight in checkpoint.weights.values():
        layer = layer_of(weight.entry.name)
        layers.setdefault(manifest.n_layers if layer is None else layer, []).append(weight)
    index: dict[str, str] = {}
    total = 0
    out.mkdir(parents=True, exist_ok=True)
    for done, layer in enumerate(sorted(layers), 1):
        tensors: Tensors = {}
        for weight in layers[layer]:
            tensors |= _rounded(checkpoint, weight, target)
        shard = _SHARD.format(done, len(layers))
        save_tensors(tensors, out / shard, {"format": "pt"})
        index |= dict.fromkeys(tensors, shard)
        total += sum(tensor.nbytes for tensor in tensors.values())
        report(Progress("quantize", manifest.model, done, len(layers), "layers"))
    keep(out / INDEX, canonical_json({"metadata": {"total_size": total}, "weight_map": index}))
    keep(out / "config.json", json.dumps(config, indent=2).encode())  # last: without it the folder is no model
    return total


def _rounded(checkpoint: FileCheckpoint, weight: Weight, target: RoundingTarget) -> Tensors:
    name, shape = weight.entry.name, weight.entry.shape
    inner = layer_of(name) is not None and not _ROUTER.search(name)
    if name.endswith(".weight") and len(shape) == 2 and (inner or (target.outer and _OUTER.search(name))):
        matrix = checkpoint.read(name, torch.float32)
        if not bool(torch.isfinite(matrix).all()):
            raise ModelError(f"{name} of {checkpoint.manifest.model} holds values that are not finite: pull it again")
        found = target.round(name, matrix)
        if found is not None:
            module = name.removesuffix(".weight")
            return {f"{module}.{key}": tensor.contiguous() for key, tensor in found.items()}
    dtype = torch.float32 if weight.entry.format in ("F32", "gguf:F32") else torch.bfloat16
    return {name: checkpoint.read(name, dtype).contiguous()}


def _ggml(kind: str) -> Callable[[str, torch.Tensor], Tensors | None]:
    """Blocks of `kind`; where columns do not divide, of a finer type that they do divide into."""

    def round_matrix(name: str, matrix: torch.Tensor) -> Tensors | None:
        own = "Q8_0" if _OUTER.search(name) else kind  # an error there is in every token: as llama.cpp, finer
        if matrix.shape[1] % 32:
            return None
        if own == "Q4_K" and matrix.shape[1] % 256:
            own = "Q5_0"
        blocks = []
        for first, last in runs(*matrix.shape):
            values = np.ascontiguousarray(matrix[first:last].numpy())
            number = gguf.GGMLQuantizationType[own]
            blocks.append(quantize_q4_k(values) if own == "Q4_K" else gguf.quantize(values, number))
        return {f"weight.{own.lower()}": torch.from_numpy(np.concatenate(blocks))}

    return round_matrix


def _int8(name: str, matrix: torch.Tensor) -> Tensors | None:
    """compressed-tensors, pack-quantized with a binary16 scale a row: what the kernels multiply by as Q8_0."""
    if matrix.shape[1] % 4:
        return None
    scales = (matrix.abs().amax(1, keepdim=True) / 127).half()
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    codes = (matrix / scales.float()).round().clamp(-128, 127).to(torch.int32) + 128
    words = codes.reshape(len(matrix), -1, 4) << torch.arange(0, 32, 8, dtype=torch.int32)
    packed = words[..., 0] | words[..., 1] | words[..., 2] | words[..., 3]
    return {"weight_packed": packed, "weight_scale": scales, "weight_shape": torch.tensor(matrix.shape)}


def _fp8(name: str, matrix: torch.Tensor) -> Tensors | None:
    """compressed-tensors, float-quantized with a scale a row."""
    scales = matrix.abs().amax(1, keepdim=True) / 448
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    return {"weight": (matrix / scales).clamp(-448, 448).to(torch.float8_e4m3fn), "weight_scale": scales}


def _compressed(form: str, **weights: Any) -> dict[str, Any]:
    group = {
        "targets": ["Linear"], "input_activations": None, "output_activations": None,
        "weights": {"num_bits": 8, "strategy": "channel", "symmetric": True, "dynamic": False, **weights},
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": {"group_0": group},
    }  # fmt: skip


TARGETS: Mapping[str, RoundingTarget] = {
    "q4_k": RoundingTarget(_ggml("Q4_K"), {"quant_method": "ggml"}, True),
    "q8_0": RoundingTarget(_ggml("Q8_0"), {"quant_method": "ggml"}, True),
    "int8": RoundingTarget(_int8, _compressed("pack-quantized", type="int"), False),
    "fp8": RoundingTarget(_fp8, _compressed("float-quantized", type="float"), False),
}
"""By the names that `--to` takes."""
