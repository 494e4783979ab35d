"""GGUF files of tiny models, laid out as the usual converter does."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Tensors = dict[str, np.ndarray[Any, Any]]


INTERLEAVED = ("llama", "granite", "granitemoe", "granitehybrid", "smollm3", "arcee", "olmo", "mistral3")
PLUS_ONE = ("gemma", "gemma2", "gemma3", "qwen3next", "qwen35", "qwen35moe", "nemotron")
SPELLED = (
    (r"e_score_correction_bias$", "e_score_correction.bias"),
    (r"\.feed_forward\.expert_bias$", ".feed_forward.expert_bias.bias"),
    (r"\.dt_bias$", ".dt_proj.bias"),
    (r"\.mlp\.gate\.moe_statics\.", ".mlp.moe_statics."),
    (r"\.mlp\.e_score", ".mlp.gate.e_score"),
    (r"^model\.layers\.(\d+)\.mixer\.", r"backbone.layers.\1.mixer."),
    (r"\.sinks$", ".sinks.weight"),
    (r"\.block_sparse_moe\.router\.", ".block_sparse_moe.gate."),
)
"""What converters call a tensor before they look its name up."""


def plain_numbers(name: str, data: np.ndarray[Any, Any]) -> bool:
    """Whether converters keep a tensor in float32 whatever matrices are stored as."""
    return data.ndim == 1 or not name.endswith(".weight") or any(part in name for part in ("gate_inp", "conv", "norm"))


def settled(model: Any) -> Any:
    """The model with decays that a recurrent layer could have been trained to."""
    for name, weight in model.named_parameters():
        if name.endswith("A_log"):
            weight.data = weight.data.abs() / 2
    return model


def gguf_tensors(model: Any, arch: str) -> Tensors:
    """The model's weights under GGUF names, in GGUF's layout."""
    config = model.config
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    result: Tensors = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for own, data in converted(name, weight.float().numpy(), config, arch):
            for pattern, other in SPELLED:
                own = re.sub(pattern, other, own)
            stored = own if own.startswith("blk.") else names.get_name(own, try_suffixes=(".weight", ".bias"))
            assert stored is not None, f"{arch} has no name for {own}"
            result[stored] = data.reshape(-1) if own.endswith("e_score_correction.bias") else data
    rope = getattr(config, "rope_parameters", None) or {}
    for kind in ("long", "short") if "long_factor" in rope else ():
        result[f"rope_factors_{kind}.weight"] = np.array(rope[f"{kind}_factor"], np.float32)
    return result


def converted(name: str, data: np.ndarray[Any, Any], config: Any, arch: str) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """A tensor of transformers as converters hand it on: names to look up, or those of the file."""
    layer = m.group(1) if (m := re.search(r"layers\.(\d+)\.", name)) else ""
    if name.endswith(("experts.gate_up_proj", "experts.gate_up_proj_bias")):
        kind = "bias" if name.endswith("bias") else "weight"
        turned = arch in ("gpt-oss", "llama4") and kind == "weight"
        data = data.swapaxes(1, 2) if turned else data
        half = data.shape[1] // 2
        gate, up = (data[:, ::2], data[:, 1::2]) if arch == "gpt-oss" else (data[:, :half], data[:, half:])
        return [(f"blk.{layer}.ffn_gate_exps.{kind}", gate), (f"blk.{layer}.ffn_up_exps.{kind}", up)]
    if name.endswith(("experts.down_proj", "experts.down_proj_bias", "experts.up_proj")):
        stem = "up" if "up_proj" in name else "down"
        kind = "bias" if name.endswith("bias") else "weight"
        turned = arch in ("gpt-oss", "llama4") and kind == "weight"
        return [(f"blk.{layer}.ffn_{stem}_exps.{kind}", data.swapaxes(1, 2) if turned else data)]
    if name.endswith("shared_mlp.input_linear.weight"):
        end = "_shexp" if config.num_local_experts else ""
        half = data.shape[0] // 2
        return [(f"blk.{layer}.ffn_gate{end}.weight", data[:half]), (f"blk.{layer}.ffn_up{end}.weight", data[half:])]
    if name.endswith("shared_mlp.output_linear.weight") and not config.num_local_experts:
        return [(f"blk.{layer}.ffn_down.weight", data)]
    if name.endswith("kv_b_proj.weight"):
        heads = data.reshape(config.num_attention_heads, -1, data.shape[1])
        k, v = heads[:, : config.qk_nope_head_dim], heads[:, config.qk_nope_head_dim :]
        return [(f"blk.{layer}.attn_k_b.weight", k.swapaxes(1, 2)), (f"blk.{layer}.attn_v_b.weight", v)]
    if ".linear_attn." in name:
        return linear_attention(name, data, config, arch, layer)
    if arch in INTERLEAVED and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        data = data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)
    if arch in PLUS_ONE and name.endswith("norm.weight"):
        data = data + 1
    if arch == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        data = data.T
    if name.endswith("shared_expert_gate.weight"):
        data = data[0]
    if name.endswith("A_log"):
        data = -np.exp(data)
    if name.endswith((".A_log", ".D")) and data.ndim == 1 and arch != "mamba":
        data = data[:, None]
    if name.endswith("conv1d.weight") or ".conv.conv." in name:
        data = data.squeeze(1)
    if name.endswith((".mamba.norm.weight", ".mixer.norm.weight")):
        groups = config.mamba_n_groups if "mamba." in name else config.n_groups
        data = data.reshape(groups, -1)
    return [(name, data)]


def linear_attention(
    name: str, data: np.ndarray[Any, Any], config: Any, arch: str, layer: str
) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """Of Qwen3-Next, whose projection is taken apart, and Qwen3.5, whose value heads change places."""
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    dk, dv = config.linear_key_head_dim, config.linear_value_head_dim
    if name.endswith("A_log"):
        data = -np.exp(data)
    if name.endswith("conv1d.weight"):
        data = data.squeeze(1)
    if name.endswith("in_proj_qkvz.weight"):
        of_head = data.reshape(keys, -1, data.shape[1])
        cuts = np.cumsum([dk, dk, values // keys * dv])
        q, k, v, z = (part.reshape(-1, data.shape[1]) for part in np.split(of_head, cuts, 1))
        return [(f"blk.{layer}.attn_qkv.weight", np.concatenate([q, k, v])), (f"blk.{layer}.attn_gate.weight", z)]
    if arch == "qwen3next":
        return [(name, data)]

    def tiled(part: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
        return part.reshape(keys, values // keys, width, *part.shape[1:]).swapaxes(0, 1).reshape(part.shape)

    last = name.rpartition("linear_attn.")[2]
    if last in ("A_log", "dt_bias", "in_proj_a.weight", "in_proj_b.weight"):
        data = tiled(data, 1)
    elif last in ("in_proj_qkv.weight", "conv1d.weight"):
        data = np.concatenate([data[: 2 * keys * dk], tiled(data[2 * keys * dk :], dv)])
    elif last == "in_proj_z.weight":
        data = tiled(data, dv)
    elif last == "out_proj.weight":
        data = tiled(data.T, dv).T
    return [(name, data)]


def gguf_keys(model: Any) -> dict[str, Any]:
    """The metadata that every architecture has, without its prefix."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    keys: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": getattr(config, "max_position_embeddings", None),
        "embedding_length": config.hidden_size,
        "attention.head_count": getattr(config, "num_attention_heads", None),
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
    kinds: Callable[[str], str] | None = None,
) -> Path:
    """Write the file (or the parts, of `split` tensors each) and return the path of the (first) one.

    keys: metadata beside `gguf_keys`, the architecture's without prefix, "tokenizer." and "general." with it; None
    removes one. kind: what matrices are stored as; kinds: of each by its name, in the place of that.
    """
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    for key, value in ({**gguf_keys(model), **(keys or {})}).items():
        if value is not None:
            add_key(writer, key if key.startswith(("tokenizer.", "general.", "split.")) else f"{arch}.{key}", value)
    tensors = gguf_tensors(model, arch)
    change(tensors)
    for name, data in tensors.items():
        kind = kinds(name) if kinds is not None else kind
        number = gguf.GGMLQuantizationType[kind]
        if kind == "F32" or plain_numbers(name, data):
            writer.add_tensor(name, np.ascontiguousarray(data, np.float32))
        elif data.shape[-1] % gguf.GGML_QUANT_SIZES[number][0]:  # as converters do
            writer.add_tensor(name, np.ascontiguousarray(data, np.float16))
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
