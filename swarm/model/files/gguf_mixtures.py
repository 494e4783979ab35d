"""Mixtures of experts in GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarm.model.files.gguf_config import Family, Keys, biased, whole_window
from swarm.model.files.gguf_file import GGUFHeader, GGUFTensor

SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN = 1, 2, 3
"""`expert_gating_func` of llama.cpp."""


def gating(keys: Keys, expected: int) -> None:
    """Accept the one way that this family's shares are made; files from before the key mean it. Raises ValueError."""
    found = keys.number("expert_gating_func", expected)
    if found != expected and not (found == 0 and expected == SOFTMAX):
        raise ValueError(f"{keys.family}.expert_gating_func is {found}, expected {expected}")


def any_layer(header: GGUFHeader, name: str) -> GGUFTensor | None:
    """The tensor `blk.N.<name>` of the first layer that has it."""
    return next((t for stored, t in header.tensors.items() if stored.split(".", 2)[2:] == [name]), None)


def expert_width(keys: Keys, header: GGUFHeader) -> int:
    """Inner values of one routed expert: by its key, or in older files by its tensors. Raises KeyError."""
    down = any_layer(header, "ffn_down_exps.weight")
    if keys.get("expert_feed_forward_length") is None and down is not None:
        return down.shape[-1]
    return keys.number("expert_feed_forward_length")


def qwen_moe(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Qwen2-MoE and Qwen3-MoE. llama.cpp divides the chosen experts' shares by their sum in the latter."""
    config["hidden_act"] = "silu"
    config["num_experts"] = keys.number("expert_count")
    config["num_experts_per_tok"] = keys.number("expert_used_count")
    config["norm_topk_prob"] = keys.flag("expert_weights_norm", keys.family == "qwen3moe")
    config["mlp_only_layers"], config["decoder_sparse_step"] = [], 1  # the architecture has no dense layers
    gating(keys, SOFTMAX)
    config["moe_intermediate_size"] = expert_width(keys, header)
    if keys.family == "qwen2moe":
        shared = header.tensors["blk.0.ffn_gate_shexp.weight"]
        config["shared_expert_intermediate_size"] = keys.number("expert_shared_feed_forward_length", shared.shape[0])
        config["qkv_bias"] = biased(header, "attn_q.bias")
    else:
        config["attention_bias"] = biased(header, "attn_q.bias", "attn_output.bias")
    config.setdefault("intermediate_size", config["moe_intermediate_size"])
    whole_window(keys, config)


def mixtral(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Files that call themselves llama and have experts. Shares are those of the chosen, of both in all that exist."""
    if any(name.startswith("blk.0.") and name.endswith(".bias") for name in header.tensors):
        raise ValueError("a llama with experts and biases")
    config.pop("attention_bias", None)
    config.update(model_type="mixtral", architectures=["MixtralForCausalLM"], hidden_act="silu")
    config["num_local_experts"] = keys.number("expert_count")
    config["num_experts_per_tok"] = keys.number("expert_used_count")
    if any_layer(header, "ffn_down_exps.weight") is not None:
        config["intermediate_size"] = expert_width(keys, header)
    gating(keys, SOFTMAX)
    window = keys.number("attention.sliding_window", 0)
    config["sliding_window"] = window if 0 < window < config["max_position_embeddings"] else None
    config.setdefault("rope_theta", 10000.0)


def _gpt_oss(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Windows and full attention take turns, the window first; limits and slopes of its gates are in no key."""
    config["hidden_act"] = "silu"
    config["attention_bias"] = True
    config["num_local_experts"] = keys.number("expert_count")
    config["num_experts_per_tok"] = config["experts_per_token"] = keys.number("expert_used_count")
    config["intermediate_size"] = expert_width(keys, header)
    config["sliding_window"] = keys.number("attention.sliding_window")
    kinds = ("sliding_attention", "full_attention")
    config["layer_types"] = [kinds[i % 2] for i in range(config["num_hidden_layers"])]
    config.setdefault("rope_scaling", {"rope_type": "default"})  # its class would assume that of its large models
    gating(keys, SOFTMAX_OF_CHOSEN)


_GROUPS = {(True, 256): (8, 4), (False, 160): (8, 3)}
"""Whether shares are by a sigmoid, and how many experts -> groups, and how many of them are taken: DeepSeek V3 and R1;
V2 and V2.5 (V2-Lite's 64 experts are in none)."""


def _grouped(keys: Keys, config: dict[str, Any], sigmoid: bool) -> None:
    """Routed experts of DeepSeek and those that follow it."""
    config["n_routed_experts"] = keys.number("expert_count")
    config["num_experts_per_tok"] = keys.number("expert_used_count")
    config["n_shared_experts"] = keys.number("expert_shared_count", 0) or None
    config["first_k_dense_replace"] = keys.number("leading_dense_block_count", 0)
    config["routed_scaling_factor"] = keys.real("expert_weights_scale", 0.0) or 1.0
    config["norm_topk_prob"] = keys.flag("expert_weights_norm", False)
    # Files from before the keys: the released configs of those with so many experts say their groups.
    released = _GROUPS.get((sigmoid, config["n_routed_experts"]), (1, 1)) if keys.family == "deepseek2" else (1, 1)
    config["n_group"] = keys.number("expert_group_count", released[0]) or 1
    config["topk_group"] = keys.number("expert_group_used_count", released[1]) or 1


def _latent(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Widths of latent attention and of an expert. Raises KeyError, ValueError."""
    config.pop("head_dim")
    rope = keys.number("rope.dimension_count")
    key = keys.number("attention.key_length_mla", 0) or keys.number("attention.key_length")
    value = keys.number("attention.value_length_mla", 0) or keys.number("attention.value_length")
    if not 0 < rope < key:
        raise ValueError(f"{keys.family}.rope.dimension_count is {rope} where keys have {key}")
    config["num_key_value_heads"] = config["num_attention_heads"]
    config["qk_rope_head_dim"], config["qk_nope_head_dim"], config["v_head_dim"] = rope, key - rope, value
    config["kv_lora_rank"] = keys.number("attention.kv_lora_rank")
    config["q_lora_rank"] = keys.number("attention.q_lora_rank", 0) or None
    config["moe_intermediate_size"] = expert_width(keys, header)


def _deepseek(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """DeepSeek V2 and V3, and those that compute like the latter (R1, Kimi K2, GLM-4.7-Flash): shares by a sigmoid tell
    them apart. Files say the widths of heads either as the latent's (newer) or as they are."""
    sigmoid = any_layer(header, "exp_probs_b.bias") is not None
    gating(keys, SIGMOID if sigmoid else SOFTMAX)
    kind = ("deepseek_v3", "DeepseekV3ForCausalLM") if sigmoid else ("deepseek_v2", "DeepseekV2ForCausalLM")
    config.update(model_type=kind[0], architectures=[kind[1]], hidden_act="silu", attention_bias=False)
    _latent(keys, header, config)
    _grouped(keys, config, sigmoid)
    if not sigmoid:
        if config["norm_topk_prob"]:
            raise ValueError(f"{keys.family}.expert_weights_norm is True where shares are by a softmax, expected False")
        config["topk_method"] = "group_limited_greedy" if config["n_group"] > 1 else "greedy"


def _mistral4(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Text halves of Mistral Small 4. Queries grow with their position where the file says so, as llama.cpp has it: a
    converter that leaves the key out leaves them as they are, which within the first length (8192) is no difference."""
    config.update(hidden_act="silu", attention_bias=False)
    gating(keys, SOFTMAX)
    _latent(keys, header, config)
    _grouped(keys, config, False)
    beta = keys.real("attention.temperature_scale", 0.0)
    if (rope := config.get("rope_scaling") or {}).get("rope_type") != "yarn":
        raise ValueError("mistral4 without yarn")
    width = config["qk_rope_head_dim"] + config["qk_nope_head_dim"]
    rope |= {"llama_4_scaling_beta": beta, "partial_rotary_factor": config["qk_rope_head_dim"] / width}


def _glm4_moe(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["attention_bias"] = biased(header, "attn_q.bias")
    config["use_qk_norm"] = biased(header, "attn_q_norm.weight")
    config["moe_intermediate_size"] = expert_width(keys, header)
    gating(keys, SIGMOID)
    _grouped(keys, config, True)


def _granite_moe(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    granite_factors(keys, config)
    config["attention_bias"] = biased(header, "attn_q.bias")
    config["num_local_experts"] = keys.number("expert_count")
    config["num_experts_per_tok"] = keys.number("expert_used_count")
    config["intermediate_size"] = expert_width(keys, header)
    gating(keys, SOFTMAX)
    shared = keys.number("expert_shared_feed_forward_length", 0)
    if shared:
        config.update(model_type="granitemoeshared", architectures=["GraniteMoeSharedForCausalLM"])
        config["shared_intermediate_size"] = shared


def granite_factors(keys: Keys, config: dict[str, Any]) -> None:
    """Four factors of Granite models, which the converter always writes."""
    config["hidden_act"] = "silu"
    for key, name in (
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),  # divides, in both
    ):
        config[name] = keys.real(key)


def _olmoe(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["num_experts"] = keys.number("expert_count")
    config["num_experts_per_tok"] = keys.number("expert_used_count")
    config["intermediate_size"] = expert_width(keys, header)
    config["norm_topk_prob"] = keys.flag("expert_weights_norm", False)
    config["clip_qkv"] = keys.real("attention.clamp_kqv", 0.0) or None
    gating(keys, SOFTMAX)


def _dots1(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["attention_bias"] = biased(header, "attn_q.bias")
    config["moe_intermediate_size"] = expert_width(keys, header)
    config["sliding_window"] = None
    config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    gating(keys, SIGMOID)
    _grouped(keys, config, True)
    whole_window(keys, config)


def _ernie_moe(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["use_bias"] = biased(header, "attn_q.bias", "ffn_up.bias")
    config["moe_num_experts"] = keys.number("expert_count")
    config["moe_k"] = keys.number("expert_used_count")
    config["moe_intermediate_size"] = expert_width(keys, header)
    config["moe_layer_interval"] = keys.number("interleave_moe_layer_step", 1)
    config["moe_layer_start_index"] = keys.number("leading_dense_block_count", 0)
    config["moe_layer_end_index"] = config["num_hidden_layers"] - 1
    shared = any_layer(header, "ffn_down_shexp.weight")
    config["moe_num_shared_experts"] = 0 if shared is None else shared.shape[-1] // config["moe_intermediate_size"]
    keys.asked |= {"expert_shared_count", "expert_shared_feed_forward_length"}  # its tensors say it rightly
    gating(keys, SOFTMAX)


def _hunyuan_moe(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["attention_bias"] = biased(header, "attn_q.bias")
    config["num_experts"] = keys.number("expert_count")
    config["moe_topk"] = keys.number("expert_used_count")
    config["intermediate_size"] = expert_width(keys, header)
    config.setdefault("rope_scaling", {"rope_type": "default"})  # the base is stated as scaled
    keys.asked |= {"expert_shared_count", "expert_shared_feed_forward_length"}  # one, which its tensors must fit
    gating(keys, SOFTMAX)


def _minimax_m2(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["num_local_experts"] = keys.number("expert_count")
    config["num_experts_per_tok"] = keys.number("expert_used_count")
    config["intermediate_size"] = expert_width(keys, header)
    gating(keys, SIGMOID)


def _llama4(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Llama 4. Chunks of 8192 positions, a layer of four without rotation whose queries grow with their position, and
    that queries and keys are normed unless there are 128 experts: no key says so, llama.cpp knows."""
    config["hidden_act"] = "silu"
    config["attention_bias"] = biased(header, "attn_q.bias")
    config["intermediate_size_mlp"] = config.get("intermediate_size", 0) or expert_width(keys, header)
    config["intermediate_size"] = expert_width(keys, header)
    config["num_local_experts"] = keys.number("expert_count")
    config["num_experts_per_tok"] = keys.number("expert_used_count")
    config["interleave_moe_layer_step"] = keys.number("interleave_moe_layer_step")
    config["no_rope_layer_interval"], config["attention_chunk_size"] = 4, 8192
    config["use_qk_norm"] = config["num_local_experts"] != 128
    config["attn_temperature_tuning"], config["floor_scale"], config["attn_scale"] = True, 8192, 0.1
    gating(keys, SIGMOID)


MIXTURES: Mapping[str, Family] = {
    "gpt-oss": Family("gpt_oss", "GptOssForCausalLM", _gpt_oss),
    "deepseek2": Family("deepseek_v3", "DeepseekV3ForCausalLM", _deepseek, widths=True, further=True),
    "mistral4": Family("mistral4", "Mistral4ForCausalLM", _mistral4, widths=True),
    "glm4moe": Family("glm4_moe", "Glm4MoeForCausalLM", _glm4_moe, partial_rotary=True, further=True),
    "llama4": Family("llama4_text", "Llama4ForCausalLM", _llama4),
    "olmoe": Family("olmoe", "OlmoeForCausalLM", _olmoe),
    "dots1": Family("dots1", "Dots1ForCausalLM", _dots1),
    "ernie4_5-moe": Family("ernie4_5_moe", "Ernie4_5_MoeForCausalLM", _ernie_moe),
    "hunyuan-moe": Family("hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", _hunyuan_moe),
    "minimax-m2": Family("minimax_m2", "MiniMaxM2ForCausalLM", _minimax_m2, partial_rotary=True),
    "granitemoe": Family("granitemoe", "GraniteMoeForCausalLM", _granite_moe),
}
