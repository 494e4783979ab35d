"""GGUF files of tiny models, laid out as the usual converter does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Tensors = dict[str, np.ndarray[Any, Any]]


def gguf_tensors(model: Any, arch: str) -> Tensors:
    """The model's weights under GGUF names, in GGUF's layout."""
    config = model.config
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    result: Tensors = {}
    for name, weight in model.state_dict().items():
        data = weight.numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name.endswith("experts.gate_up_proj"):
            stem = names.get_name(name.replace("gate_up_proj", "gate_proj"))
            half = data.shape[1] // 2
            result[f"{stem}.weight"] = data[:, :half]
            result[f"{stem.replace('gate', 'up')}.weight"] = data[:, half:]
            continue
        if name.endswith("experts.down_proj"):
            result[f"{names.get_name(name)}.weight"] = data
            continue
        if arch in ("llama", "granite", "smollm3", "arcee") and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            data = (
                data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)
            )
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            data = data + 1
        if arch == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            data = data.T
        if name.endswith("shared_expert_gate.weight"):
            data = data[0]
        result[names.get_name(name, try_suffixes=(".weight", ".bias"))] = data
    return result


def gguf_keys(model: Any) -> dict[str, Any]:
    """The metadata that every architecture has, without its prefix."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    keys: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None),
        "feed_forward_length": getattr(config, "intermediate_size", None),
        "rope.freq_base": rope.get("rope_theta", rope.get("full_attention", {}).get("rope_theta")),
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "attention.layer_norm_epsilon": next(
            (
                getattr(config, n)
                for n in ("norm_epsilon", "layer_norm_epsilon", "layer_norm_eps")
                if hasattr(config, n)
            ),
            None,
        ),
        "attention.key_length": getattr(config, "head_dim", None),
    }
    return {key: value for key, value in keys.items() if value is not None}


def write_gguf(
    path: Path,
    model: Any,
    arch: str,
    keys: Mapping[str, Any] | None = None,
    change: Callable[[Tensors], None] = lambda tensors: None,
    kind: str = "F32",
    split: int = 0,
) -> Path:
    """Write the file (or the parts, of `split` tensors each) and return the path of the (first) one.

    keys: metadata beside `gguf_keys`, the architecture's without prefix, "tokenizer." and "general." with it; None
    removes one. kind: what matrices are stored as.
    """
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    for key, value in ({**gguf_keys(model), **(keys or {})}).items():
        if value is not None:
            add_key(writer, key if key.startswith(("tokenizer.", "general.", "split.")) else f"{arch}.{key}", value)
    tensors = gguf_tensors(model, arch)
    change(tensors)
    number = gguf.GGMLQuantizationType[kind]
    for name, data in tensors.items():
        if kind == "F32" or data.ndim == 1:
            writer.add_tensor(name, np.ascontiguousarray(data, np.float32))
        else:
            writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(data, np.float32), number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))
    return parts[0] if split else path


def add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, list(value))
