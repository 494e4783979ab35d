"""GGUF architectures, and what the keys of each say to transformers.

Names of plain numbers are those of `gguf_config.py`; here is what is peculiar to a family, most of it what llama.cpp
knows by the architecture alone. Mixtures of experts and hybrids have files of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarm.model.files.gguf_config import Family, Keys, biased, read_config, whole_window
from swarm.model.files.gguf_dense import DENSE
from swarm.model.files.gguf_file import GGUFHeader
from swarm.model.files.gguf_hybrids import HYBRIDS
from swarm.model.files.gguf_mixtures import MIXTURES, granite_factors, mixtral, qwen_moe


def transformers_config(header: GGUFHeader, where: str) -> dict[str, Any]:
    """A config.json for a GGUF file, from its metadata. Raises ModelError for an architecture that is not known here,
    and for a key that would be ignored."""
    return read_config(header, where, FAMILIES)


def _llama(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["attention_bias"] = biased(header, "attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias")
    if keys.family != "llama":
        whole_window(keys, config)
        return
    if biased(header, "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"):
        config["mlp_bias"] = True
    if keys.number("expert_count", 0):
        return mixtral(keys, header, config)
    window = keys.number("attention.sliding_window", 0)
    if 0 < window < config["max_position_embeddings"]:  # then it is a Mistral, which has no biases
        if config["attention_bias"] or "mlp_bias" in config or "rope_scaling" in config:
            raise ValueError(f"attention.sliding_window is {window} beside biases or rope scaling")
        config.update(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=window)


def _gemma(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Gemma 2 and 3. The width that scales attention is that of a head, but for the 27B models (46 and 62 layers)."""
    whole = config["num_hidden_layers"] == (46 if keys.family == "gemma2" else 62)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    config["query_pre_attn_scalar"] = hidden // heads if whole else config["head_dim"]
    config["hidden_activation"] = "gelu_pytorch_tanh"
    config["attention_bias"] = False
    config["sliding_window"] = keys.number("attention.sliding_window")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        default = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0} if keys.family == "gemma2" else {}
        config[key] = (keys.real(key) if keys.get(key) is not None else default.get(key)) or None
    every = 2 if keys.family == "gemma2" else 6
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        local = [bool(item) for item in pattern]
    else:
        every = every if pattern is None else keys.number("attention.sliding_window_pattern")
        local = [bool((i + 1) % every) for i in range(config["num_hidden_layers"])]
    config["layer_types"] = ["sliding_attention" if item else "full_attention" for item in local]
    if keys.family == "gemma3":  # windows have a rope of their own, never scaled
        swa = keys.real("rope.freq_base_swa") if keys.get("rope.freq_base_swa") is not None else 10000.0
        theta, scaling = config.pop("rope_theta"), config.pop("rope_scaling", {"rope_type": "default"})
        config["rope_parameters"] = {
            "full_attention": {**scaling, "rope_theta": theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": swa},
        }


def _phi3(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    window = keys.number("attention.sliding_window", 0)
    if 0 < window < config["max_position_embeddings"]:
        config["sliding_window"] = window
    keys.asked.add("rope.scaling.original_context_length")
    config["original_max_position_embeddings"] = keys.number(
        "rope.scaling.original_context_length", config["max_position_embeddings"]
    )


def _granite(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Llama with four factors, which the converter always writes."""
    granite_factors(keys, config)
    config["attention_bias"] = biased(header, "attn_q.bias", "attn_output.bias")
    config["mlp_bias"] = biased(header, "ffn_gate.bias", "ffn_down.bias")


def _smollm3(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Every fourth layer goes without rotation: no key says so, llama.cpp counts itself."""
    config["hidden_act"] = "silu"
    config["no_rope_layer_interval"] = 4
    config["attention_bias"] = biased(header, "attn_q.bias", "attn_output.bias")
    config["mlp_bias"] = biased(header, "ffn_gate.bias", "ffn_down.bias")
    whole_window(keys, config)


def _arcee(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "relu2"
    config["attention_bias"] = biased(header, "attn_q.bias", "attn_output.bias")
    config["mlp_bias"] = biased(header, "ffn_up.bias", "ffn_down.bias")


def _cohere(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["logit_scale"] = keys.real("logit_scale")


def _seed_oss(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["attention_bias"] = biased(header, "attn_q.bias")
    config["attention_out_bias"] = biased(header, "attn_output.bias")
    config["mlp_bias"] = biased(header, "ffn_gate.bias")


def _gemma1(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = config["hidden_activation"] = "gelu_pytorch_tanh"
    config["attention_bias"] = False


def _starcoder2(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "gelu_pytorch_tanh"
    config["use_bias"] = biased(header, "attn_q.bias")
    whole_window(keys, config)


def _gpt2(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    for key, name in (
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
        ("intermediate_size", "n_inner"),
    ):
        if key in config:
            config[name] = config.pop(key)
    for key in ("rope_theta", "num_key_value_heads", "head_dim"):
        config.pop(key)
    config["activation_function"] = "gelu_new"


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", "LlamaForCausalLM", _llama),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", _llama),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _llama),
    "qwen2moe": Family("qwen2_moe", "Qwen2MoeForCausalLM", qwen_moe),
    "qwen3moe": Family("qwen3_moe", "Qwen3MoeForCausalLM", qwen_moe),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", _gemma),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", _gemma),
    "phi3": Family("phi3", "Phi3ForCausalLM", _phi3, partial_rotary=True),
    "starcoder2": Family("starcoder2", "Starcoder2ForCausalLM", _starcoder2),
    "gemma": Family("gemma", "GemmaForCausalLM", _gemma1),
    "granite": Family("granite", "GraniteForCausalLM", _granite),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", _smollm3),
    "arcee": Family("arcee", "ArceeForCausalLM", _arcee),
    "seed_oss": Family("seed_oss", "SeedOssForCausalLM", _seed_oss),
    "command-r": Family(
        "cohere", "CohereForCausalLM", _cohere, norm=("attention.layer_norm_epsilon", "layer_norm_eps")
    ),
    "gpt2": Family("gpt2", "GPT2LMHeadModel", _gpt2),
    **DENSE,
    **MIXTURES,
    **HYBRIDS,
}
"""GGUF architectures that are read. Files of Mistral models call themselves "llama", rightly."""

KINDS = frozenset(family.kind for family in FAMILIES.values()) | {
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Olmo3ForCausalLM",
    "DeepseekV2ForCausalLM",
    "GraniteMoeSharedForCausalLM",
}
"""Classes of models that are read from GGUF; some architectures are of two, which a key or a tensor tells apart."""
