"""GGUF in the words of transformers: config from metadata, tensor names, and the order of rotary rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from swarm.errors import ModelError
from swarm.model.gguf_file import GGUFHeader

_FAMILIES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""GGUF architecture -> transformers class. GGUF files of Mistral models call themselves "llama", rightly."""

_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def transformers_name(name: str) -> str | None:
    """The transformers name of a GGUF tensor; None for one that no supported family has."""
    if name in _OUTER:
        return _OUTER[name]
    found = _BLOCK.fullmatch(name)
    if found is None or found.group(2) not in _INNER:
        return None
    return f"model.layers.{int(found.group(1))}.{_INNER[found.group(2)]}.{found.group(3)}"


def transformers_config(header: GGUFHeader, where: str) -> dict[str, Any]:
    """A config.json for a GGUF file, from its metadata. Raises ModelError for a family that is not known here."""
    metadata = header.metadata
    family = metadata.get("general.architecture")
    if family not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise ModelError(f"{where} is a GGUF of architecture {family!r}, expected one of {known}; use safetensors")
    scaling = metadata.get(f"{family}.rope.scaling.type", "none")
    if "rope_freqs.weight" in header.tensors or scaling != "none" or f"{family}.expert_count" in metadata:
        raise ModelError(f"{where} uses rope scaling or experts, which are not read from GGUF; use safetensors")
    try:
        return _config(metadata, header, str(family))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as exc:
        raise ModelError(f"{where} lacks metadata or has it in another form: {exc}; fetch it again") from exc


def _config(metadata: Mapping[str, Any], header: GGUFHeader, family: str) -> dict[str, Any]:
    def number(key: str) -> int:
        return int(metadata[f"{family}.{key}"])

    def real(key: str) -> float:  # a float32 in the file; its shortest text is the value that was meant
        return float(str(np.float32(metadata[f"{family}.{key}"])))

    heads = number("attention.head_count")
    config: dict[str, Any] = {
        "model_type": family,
        "architectures": [_FAMILIES[family]],
        "hidden_size": number("embedding_length"),
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": int(metadata.get(f"{family}.attention.head_count_kv", heads)),
        "head_dim": int(metadata.get(f"{family}.attention.key_length", number("embedding_length") // heads)),
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": real("attention.layer_norm_rms_epsilon"),
        "rope_theta": real("rope.freq_base") if f"{family}.rope.freq_base" in metadata else 10000.0,
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
    }
    for name in ("bos", "eos", "padding"):
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(token, int):
            config[f"{'pad' if name == 'padding' else name}_token_id"] = token
    return config


def restore_rows(name: str, tensor: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """Undo the row order that GGUF gives to the rotary projections of the Llama family.

    GGUF interleaves the two halves of each head's rotary dimensions; transformers keeps them apart. Only `q_proj`
    and `k_proj` (weight [rows, in] or bias [rows]) are concerned; any other tensor comes back as it is.
    """
    if config["model_type"] != "llama" or not (".q_proj." in name or ".k_proj." in name):
        return tensor
    heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
    rest = tensor.shape[1:]
    return tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *rest).transpose(1, 2).reshape(tensor.shape)
