"""Models with recurrent layers in GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarm.model.files.gguf_config import Family, Keys, biased
from swarm.model.files.gguf_file import GGUFHeader
from swarm.model.files.gguf_mixtures import SIGMOID, SOFTMAX, any_layer, expert_width, gating, granite_factors


def _kinds(keys: Keys, recurrent: str, attention: str = "full_attention") -> list[str]:
    """What each layer is: those without heads of keys are recurrent."""
    return [attention if heads else recurrent for heads in keys.layered("attention.head_count_kv")]


def _lfm2(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["block_auto_adjust_ff_dim"] = False  # the stated width is what its rule makes
    config["layer_types"] = _kinds(keys, "conv")
    config["conv_L_cache"] = keys.number("shortconv.l_cache")
    config["conv_bias"] = any_layer(header, "shortconv.in_proj.bias") is not None
    if keys.family != "lfm2moe":
        return
    gating(keys, SIGMOID)
    config["num_experts"] = keys.number("expert_count")
    config["num_experts_per_tok"] = keys.number("expert_used_count")
    config["num_dense_layers"] = keys.number("leading_dense_block_count")
    config["moe_intermediate_size"] = expert_width(keys, header)
    config["use_expert_bias"] = any_layer(header, "exp_probs_b.bias") is not None
    config["norm_topk_prob"] = keys.flag("expert_weights_norm", True)
    config["routed_scaling_factor"] = keys.real("expert_weights_scale", 0.0) or 1.0


def _delta(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Qwen3-Next and Qwen3.5: gated delta rule, full attention in every fourth layer."""
    config["hidden_act"] = "silu"
    every = keys.number("full_attention_interval", 4)
    if every < 1:
        raise ValueError(f"{keys.family}.full_attention_interval is {every}")
    layers = range(1, config["num_hidden_layers"] + 1)
    config["layer_types"] = ["linear_attention" if i % every else "full_attention" for i in layers]
    heads = keys.number("ssm.time_step_rank")
    config["linear_num_value_heads"] = heads
    config["linear_value_head_dim"] = keys.number("ssm.inner_size") // heads
    config["linear_num_key_heads"] = keys.number("ssm.group_count")
    config["linear_key_head_dim"] = keys.number("ssm.state_size")
    config["linear_conv_kernel_dim"] = keys.number("ssm.conv_kernel")
    config["attention_bias"] = any_layer(header, "attn_q.bias") is not None
    keys.asked.add("rope.dimension_sections")  # of pictures; a token of text has one position three times
    if keys.family == "qwen35":
        return
    gating(keys, SOFTMAX)
    config["num_experts"] = keys.number("expert_count")
    config["num_experts_per_tok"] = keys.number("expert_used_count")
    config["moe_intermediate_size"] = expert_width(keys, header)
    shared = header.tensors["blk.0.ffn_gate_shexp.weight"]
    config["shared_expert_intermediate_size"] = keys.number("expert_shared_feed_forward_length", shared.shape[0])
    if keys.family == "qwen3next":
        config["norm_topk_prob"] = keys.flag("expert_weights_norm", True)
        config["mlp_only_layers"], config["decoder_sparse_step"] = [], 1
        config.setdefault("intermediate_size", config["moe_intermediate_size"])


def _granite_hybrid(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Granite 4: Mamba-2 and attention without rotation; files of Bamba call themselves so too, with rotation."""
    granite_factors(keys, config)
    config["layer_types"] = _kinds(keys, "mamba", "attention")
    rotated = keys.flag("rope.scaling.finetuned", True)
    config["position_embedding_type"] = "rope" if rotated else "nope"
    config["attention_bias"] = any_layer(header, "attn_q.bias") is not None
    inner, heads = keys.number("ssm.inner_size"), keys.number("ssm.time_step_rank")
    config["mamba_n_heads"], config["mamba_d_head"] = heads, inner // heads
    config["mamba_d_state"], config["mamba_d_conv"] = keys.number("ssm.state_size"), keys.number("ssm.conv_kernel")
    config["mamba_n_groups"] = keys.number("ssm.group_count")
    config["mamba_expand"], rest = divmod(inner, config["hidden_size"])
    if rest:
        raise ValueError(f"{keys.family}.ssm.inner_size is {inner}, no multiple of {config['hidden_size']}")
    config["mamba_conv_bias"] = any_layer(header, "ssm_conv1d.bias") is not None
    config["mamba_proj_bias"] = any_layer(header, "ssm_in.bias") is not None
    config["num_local_experts"] = keys.number("expert_count", 0)
    config["num_experts_per_tok"] = keys.number("expert_used_count", 0)
    shared = any_layer(header, "ffn_gate_shexp.weight") or any_layer(header, "ffn_gate.weight")
    if shared is None:
        raise KeyError("blk.0.ffn_gate.weight")
    config["shared_intermediate_size"] = keys.number("expert_shared_feed_forward_length", shared.shape[0])
    if config["num_local_experts"]:
        gating(keys, SOFTMAX)
        config["intermediate_size"] = expert_width(keys, header)


def _mamba(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["state_size"], config["conv_kernel"] = keys.number("ssm.state_size"), keys.number("ssm.conv_kernel")
    config["time_step_rank"] = keys.number("ssm.time_step_rank")
    config["intermediate_size"] = inner = keys.number("ssm.inner_size")
    config["expand"], rest = divmod(inner, config["hidden_size"])
    if rest:
        raise ValueError(f"{keys.family}.ssm.inner_size is {inner}, no multiple of {config['hidden_size']}")
    config["use_conv_bias"] = any_layer(header, "ssm_conv1d.bias") is not None
    config["use_bias"] = any_layer(header, "ssm_in.bias") is not None
    if keys.flag("ssm.dt_b_c_rms", False):
        raise ValueError(f"{keys.family}.ssm.dt_b_c_rms, which Falcon-Mamba has")


def _mamba2(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    config["hidden_act"] = "silu"
    config["state_size"], config["conv_kernel"] = keys.number("ssm.state_size"), keys.number("ssm.conv_kernel")
    inner, config["num_heads"] = keys.number("ssm.inner_size"), keys.number("ssm.time_step_rank")
    config["head_dim"], config["n_groups"] = inner // config["num_heads"], keys.number("ssm.group_count")
    config["expand"], rest = divmod(inner, config["hidden_size"])
    if rest:
        raise ValueError(f"{keys.family}.ssm.inner_size is {inner}, no multiple of {config['hidden_size']}")
    config["use_conv_bias"] = any_layer(header, "ssm_conv1d.bias") is not None
    config["use_bias"] = any_layer(header, "ssm_in.bias") is not None
    config["rms_norm"] = True


def _falcon_h1(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """Attention and Mamba-2 side by side in every layer. Converters multiply its many factors into the weights."""
    config["hidden_act"] = "silu"
    inner, heads = keys.number("ssm.inner_size"), keys.number("ssm.time_step_rank")
    config["mamba_d_ssm"], config["mamba_n_heads"], config["mamba_d_head"] = inner, heads, inner // heads
    config["mamba_d_state"], config["mamba_d_conv"] = keys.number("ssm.state_size"), keys.number("ssm.conv_kernel")
    config["mamba_n_groups"] = keys.number("ssm.group_count")
    config["mamba_conv_bias"] = any_layer(header, "ssm_conv1d.bias") is not None
    config["mamba_proj_bias"] = any_layer(header, "ssm_in.bias") is not None
    config["mamba_rms_norm"] = any_layer(header, "ssm_norm.weight") is not None
    config["mamba_norm_before_gate"] = False
    config["attention_bias"] = biased(header, "attn_q.bias")
    config["mlp_bias"] = biased(header, "ffn_up.bias")
    one = ("attention_in", "attention_out", "embedding", "lm_head", "key", "ssm_in", "ssm_out")
    config.update({f"{name}_multiplier": 1.0 for name in one})
    config.update(mlp_multipliers=[1.0, 1.0], ssm_multipliers=[1.0] * 5)


def _nemotron_h(keys: Keys, header: GGUFHeader, config: dict[str, Any]) -> None:
    """A layer is one thing: attention where it has heads, an MLP or experts where it has their width, else Mamba-2."""
    moe = keys.family == "nemotron_h_moe"
    heads, widths = keys.layered("attention.head_count_kv"), keys.layered("feed_forward_length")
    kinds = [
        "attention" if h else ("moe" if moe else "mlp") if w else "mamba" for h, w in zip(heads, widths, strict=True)
    ]
    config["layers_block_type"] = kinds[: config["num_hidden_layers"]]
    config["mlp_hidden_act"] = "relu2"
    keys.asked.add("attention.layer_norm_epsilon")  # the same once more
    config["mamba_hidden_act"] = "silu"
    inner, config["mamba_num_heads"] = keys.number("ssm.inner_size"), keys.number("ssm.time_step_rank")
    config["mamba_head_dim"] = inner // config["mamba_num_heads"]
    config["ssm_state_size"], config["conv_kernel"] = keys.number("ssm.state_size"), keys.number("ssm.conv_kernel")
    config["n_groups"] = keys.number("ssm.group_count")
    config["use_conv_bias"] = any_layer(header, "ssm_conv1d.bias") is not None
    config["use_bias"] = config["mamba_proj_bias"] = any_layer(header, "ssm_in.bias") is not None
    config["attention_bias"] = any_layer(header, "attn_q.bias") is not None
    config["mlp_bias"] = any_layer(header, "ffn_up.bias") is not None
    if not moe:
        return
    gating(keys, SIGMOID)
    config["n_routed_experts"], config["num_experts_per_tok"] = (
        keys.number("expert_count"),
        keys.number("expert_used_count"),
    )
    config["moe_intermediate_size"] = expert_width(keys, header)
    config["moe_shared_expert_intermediate_size"] = keys.number("expert_shared_feed_forward_length")
    config["n_shared_experts"] = keys.number("expert_shared_count")
    config["norm_topk_prob"] = keys.flag("expert_weights_norm", True)
    config["routed_scaling_factor"] = keys.real("expert_weights_scale", 0.0) or 1.0
    config["n_group"] = keys.number("expert_group_count", 1) or 1
    config["topk_group"] = keys.number("expert_group_used_count", config["n_group"]) or 1
    config["moe_latent_size"] = keys.number("moe_latent_size", 0) or None


_EPSILON = ("attention.layer_norm_rms_epsilon", "norm_eps")

_LAYER_EPSILON = ("attention.layer_norm_rms_epsilon", "layer_norm_epsilon")

HYBRIDS: Mapping[str, Family] = {
    "mamba": Family("mamba", "MambaForCausalLM", _mamba, norm=_LAYER_EPSILON, attention=False),
    "mamba2": Family("mamba2", "Mamba2ForCausalLM", _mamba2, norm=_LAYER_EPSILON, attention=False),
    "falcon-h1": Family("falcon_h1", "FalconH1ForCausalLM", _falcon_h1),
    "nemotron_h": Family("nemotron_h", "NemotronHForCausalLM", _nemotron_h, norm=_LAYER_EPSILON, mixed=True),
    "nemotron_h_moe": Family(
        "nemotron_h", "NemotronHForCausalLM", _nemotron_h, norm=_LAYER_EPSILON, mixed=True, further=True
    ),
    "lfm2": Family("lfm2", "Lfm2ForCausalLM", _lfm2, norm=_EPSILON, mixed=True),
    "lfm2moe": Family("lfm2_moe", "Lfm2MoeForCausalLM", _lfm2, norm=_EPSILON, mixed=True),
    "qwen3next": Family("qwen3_next", "Qwen3NextForCausalLM", _delta, partial_rotary=True, mixed=True),
    "qwen35": Family("qwen3_5_text", "Qwen3_5ForCausalLM", _delta, partial_rotary=True, mixed=True, further=True),
    "qwen35moe": Family(
        "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", _delta, partial_rotary=True, mixed=True, further=True
    ),
    "granitehybrid": Family("granitemoehybrid", "GraniteMoeHybridForCausalLM", _granite_hybrid, mixed=True),
}
