"""Configs with one honest change: what a family's models differ by, a value at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.models.configs import tiny_config

FAMILIES = (
    "afmoe axk2 bailing_hybrid bamba bloom cohere2 deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 diffllama dots1 "
    "ernie4_5_moe exaone4 falcon falcon_h1 gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text glm4_moe "
    "glm4_moe_lite glm_moe_dsa gpt_neox gpt_oss gptj granite granite_swa granitemoehybrid hunyuan_v1_moe hy_v4 jamba "
    "kimi_linear lfm2 lfm2_moe llama llama4_text longcat_flash mimo_v2_flash minicpm3 minimax minimax_m3_vl_text "
    "ministral3 mistral mpt nemotron_h olmo3 olmo_hybrid opt phi3 phimoe qwen2_moe qwen3 qwen3_5_moe_text "
    "qwen3_5_text qwen3_moe qwen3_next smollm3 stablelm youtu zamba2"
).split()

_OTHER = (
    "token_id", "dropout", "initializer", "use_cache", "vocab_size", "num_hidden_layers", "n_layer", "num_layers",
    "model_type", "architectures", "max_position", "n_positions", "max_seq", "dtype", "output_", "return_dict",
    "is_decoder", "is_encoder", "chunk_size_feed", "id2label", "label2id", "problem_type", "aux_loss", "jitter",
    "router_z", "pretraining_tp", "summary", "cross_attention", "mtp", "nextn", "kernels", "prefix", "transformers",
    "use_bidirectional", "num_labels",
)  # fmt: skip
"""Parts of names of what says nothing of how rows are computed, or makes another kind of model."""

_ROTATIONS: tuple[dict[str, Any], ...] = (
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
)  # fmt: skip


def changes(kind: str) -> Iterator[tuple[str, Any]]:
    """(name of a value, another value) for each value of the tiny config of a type and each way to change it."""
    for key, value in tiny_config(kind).to_dict().items():
        if not key.startswith("_") and not any(part in key for part in _OTHER):
            for other in _others(key, value):
                if other != value:
                    yield key, other


def _others(key: str, value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if key in ("hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act"):
        return ["gelu_pytorch_tanh", "relu", "silu"]
    if "softcap" in key:
        return [None, 3.0]
    if key == "sliding_window":
        return [1, 3, None]
    if key in ("rope_parameters", "rope_scaling") and isinstance(value, dict) and "rope_type" in value:
        kept = {name: value[name] for name in ("rope_theta", "partial_rotary_factor") if name in value}
        other = {"partial_rotary_factor": 0.5, "rope_theta": 100.0}
        return [{**kept, **one} for one in _ROTATIONS] + [{**value, name: number} for name, number in other.items()]
    if isinstance(value, float):
        return [1e-2] if "eps" in key else [2 * value, value / 2, 0.5]
    if isinstance(value, int):
        small = key in ("n_group", "topk_group", "num_key_value_heads", "num_kv_heads")
        return [1, 2, 4] if small else [value // 2, 2 * value]
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return [value[::-1], value[1:] + value[:1]]
    return []
