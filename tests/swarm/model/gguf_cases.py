"""Tiny random models of GGUF architectures, and the metadata that llama.cpp's converter states for each.

By name: the architecture, the model's config, keys beside `gguf_keys` (None removes one). They are held against
transformers in `test_gguf_families.py`, and against llama.cpp by `python -m tests.models.gguf`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as t

Case = tuple[str, Callable[[], Any], dict[str, Any]]

_BASE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": None,
}  # fmt: skip


def b(**changes: Any) -> dict[str, Any]:
    return {**_BASE, **changes}


E8 = {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 32}
GF = dict(attention_multiplier=0.2, embedding_multiplier=6.0, residual_multiplier=0.3, logits_scaling=4.0)
GK = {"attention.scale": 0.2, "embedding_scale": 6.0, "residual_scale": 0.3, "logit_scale": 4.0}
QL = dict(
    linear_num_key_heads=2,
    linear_num_value_heads=6,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    linear_conv_kernel_dim=4,
    head_dim=16,
)
QK = {
    "ssm.conv_kernel": 4,
    "ssm.state_size": 16,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 6,
    "ssm.inner_size": 96,
    "full_attention_interval": 4,
    "rope.dimension_count": 4,
    "rope.dimension_sections": [1, 1, 0, 0],
}
QE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 40}


def yarn(original: int) -> dict[str, object]:
    """Rotation by YaRN, eight times a context of `original` positions."""
    return {
        "rope_type": "yarn",
        "factor": 8.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": original,
        "rope_theta": 10000.0,
    }


MLA = dict(
    q_lora_rank=24,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=12,
    first_k_dense_replace=1,
    n_routed_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    n_shared_experts=1,
    num_key_value_heads=4,
)
MK = {
    **E8,
    "attention.q_lora_rank": 24,
    "attention.kv_lora_rank": 32,
    "attention.key_length": 40,
    "attention.value_length": 32,
    "attention.key_length_mla": 24,
    "attention.value_length_mla": 12,
    "rope.dimension_count": 8,
    "attention.head_count_kv": 1,
    "leading_dense_block_count": 1,
    "expert_shared_count": 1,
}
MAM = {"ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 8, "ssm.inner_size": 128}
W = {"attention.sliding_window": 7}
LN = {"attention.layer_norm_epsilon": 1e-5}
LONGROPE = {"rope.scaling.original_context_length": 256, "rope.scaling.attn_factor": 1.118033988749895}
R: dict[str, Any] = {"attention.layer_norm_rms_epsilon": 1e-5}
NO: dict[str, Any] = {
    "attention.key_length": None,
    "attention.head_count_kv": None,
    "attention.layer_norm_epsilon": None,
    "rope.freq_base": None,
}
MB: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "vocab_size": 97,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
CASES: dict[str, Case] = {
    "llama4": (
        "llama4",
        lambda: t.Llama4TextConfig(
            **b(
                head_dim=16,
                intermediate_size=32,
                intermediate_size_mlp=96,
                num_local_experts=8,
                num_experts_per_tok=2,
                interleave_moe_layer_step=2,
            )
        ),
        {**E8, "feed_forward_length": 96, "interleave_moe_layer_step": 2, "rope.dimension_count": 16},
    ),
    "mixtral": (
        "llama",
        lambda: t.MixtralConfig(**b(num_local_experts=8, num_experts_per_tok=2, sliding_window=None)),
        {"expert_count": 8, "expert_used_count": 2, "rope.dimension_count": 16},
    ),
    "gpt-oss": (
        "gpt-oss",
        lambda: t.GptOssConfig(
            **b(
                num_local_experts=8,
                num_experts_per_tok=2,
                head_dim=16,
                sliding_window=7,
                intermediate_size=32,
                rope_parameters={
                    "rope_type": "yarn",
                    "factor": 8.0,
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                    "truncate": False,
                    "original_max_position_embeddings": 32,
                    "rope_theta": 150000.0,
                },
            )
        ),
        {
            **E8,
            "attention.sliding_window": 7,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 32,
            "attention.value_length": 16,
        },
    ),
    "gpt-oss-norope": (
        "gpt-oss",
        lambda: t.GptOssConfig(
            **b(
                num_local_experts=8,
                num_experts_per_tok=2,
                head_dim=16,
                sliding_window=7,
                intermediate_size=32,
                rope_parameters={"rope_type": "default", "rope_theta": 150000.0},
            )
        ),
        {**E8, "attention.sliding_window": 7, "attention.value_length": 16},
    ),
    "deepseek3": (
        "deepseek2",
        lambda: t.DeepseekV3Config(**b(**MLA, n_group=4, topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True)),
        {
            **MK,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "expert_gating_func": 2,
        },
    ),
    "deepseek3-yarn": (
        "deepseek2",
        lambda: t.DeepseekV3Config(
            **b(
                **MLA,
                n_group=1,
                topk_group=1,
                routed_scaling_factor=2.5,
                norm_topk_prob=True,
                rope_parameters=yarn(32),
            )
        ),
        {
            **MK,
            "expert_group_count": 1,
            "expert_group_used_count": 1,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "expert_gating_func": 2,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.yarn_beta_fast": 32.0,
            "rope.scaling.yarn_beta_slow": 1.0,
            "rope.scaling.yarn_log_multiplier": 0.1,
        },
    ),
    "deepseek2-lite": (
        "deepseek2",
        lambda: t.DeepseekV2Config(
            **b(
                num_hidden_layers=27,
                **{**MLA, "q_lora_rank": None},
                n_group=1,
                topk_group=1,
                topk_method="greedy",
                routed_scaling_factor=1.0,
                norm_topk_prob=False,
                rope_parameters={
                    "rope_type": "yarn",
                    "factor": 8.0,
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                    "mscale": 0.707,
                    "mscale_all_dim": 0.707,
                    "original_max_position_embeddings": 32,
                    "rope_theta": 10000.0,
                },
            )
        ),
        {
            **{k: v for k, v in MK.items() if k != "attention.q_lora_rank"},
            "expert_group_count": 1,
            "expert_group_used_count": 1,
            "expert_weights_scale": 1.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.yarn_log_multiplier": 0.0707,
        },
    ),
    "mistral4": (
        "mistral4",
        lambda: t.Mistral4Config(
            **b(
                **{**MLA, "first_k_dense_replace": 0},
                n_group=1,
                topk_group=1,
                routed_scaling_factor=1.0,
                norm_topk_prob=True,
                rope_parameters={**yarn(8), "llama_4_scaling_beta": 0.1},
            )
        ),
        {
            **MK,
            "leading_dense_block_count": 0,
            "expert_weights_scale": 1.0,
            "expert_weights_norm": True,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 8,
            "rope.scaling.yarn_beta_fast": 32.0,
            "rope.scaling.yarn_beta_slow": 1.0,
            "rope.scaling.yarn_log_multiplier": 0.1,
            "attention.temperature_scale": 0.1,
        },
    ),
    "glm4moe": (
        "glm4moe",
        lambda: t.Glm4MoeConfig(
            **b(
                head_dim=16,
                n_routed_experts=8,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
                n_shared_experts=1,
                first_k_dense_replace=1,
                n_group=1,
                topk_group=1,
                use_qk_norm=True,
                attention_bias=True,
                routed_scaling_factor=2.5,
                norm_topk_prob=True,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            )
        ),
        {
            **E8,
            "rope.dimension_count": 8,
            "expert_shared_count": 1,
            "leading_dense_block_count": 1,
            "expert_gating_func": 2,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "expert_group_count": 1,
            "expert_group_used_count": 1,
        },
    ),
    "granitemoe": (
        "granitemoe",
        lambda: t.GraniteMoeConfig(**b(num_local_experts=8, num_experts_per_tok=2, intermediate_size=32, **GF)),
        {**E8, **GK, "rope.dimension_count": 16},
    ),
    "granitemoeshared": (
        "granitemoe",
        lambda: t.GraniteMoeSharedConfig(
            **b(num_local_experts=8, num_experts_per_tok=2, intermediate_size=32, shared_intermediate_size=40, **GF)
        ),
        {**E8, **GK, "rope.dimension_count": 16, "expert_shared_feed_forward_length": 40},
    ),
    "granitehybrid": (
        "granitehybrid",
        lambda: t.GraniteMoeHybridConfig(
            **b(
                num_local_experts=8,
                num_experts_per_tok=2,
                intermediate_size=32,
                shared_intermediate_size=40,
                layer_types=["mamba", "mamba", "attention", "mamba"],
                mamba_n_heads=8,
                mamba_d_head=16,
                mamba_d_state=16,
                mamba_n_groups=2,
                mamba_d_conv=4,
                mamba_expand=2,
                position_embedding_type="nope",
                **GF,
            )
        ),
        {
            **E8,
            **GK,
            **MAM,
            "attention.head_count_kv": [0, 0, 2, 0],
            "expert_shared_feed_forward_length": 40,
            "rope.scaling.finetuned": False,
            "attention.key_length": None,
        },
    ),
    "granitehybrid-dense": (
        "granitehybrid",
        lambda: t.GraniteMoeHybridConfig(
            **b(
                num_local_experts=0,
                num_experts_per_tok=0,
                intermediate_size=40,
                shared_intermediate_size=40,
                layer_types=["mamba", "mamba", "attention", "mamba"],
                mamba_n_heads=8,
                mamba_d_head=16,
                mamba_d_state=16,
                mamba_n_groups=1,
                mamba_d_conv=4,
                mamba_expand=2,
                position_embedding_type="nope",
                **GF,
            )
        ),
        {
            **GK,
            **MAM,
            "ssm.group_count": 1,
            "attention.head_count_kv": [0, 0, 2, 0],
            "rope.scaling.finetuned": False,
            "attention.key_length": None,
        },
    ),
    "lfm2": (
        "lfm2",
        lambda: t.Lfm2Config(
            **b(block_auto_adjust_ff_dim=False, layer_types=["conv", "conv", "full_attention", "conv"], conv_L_cache=3)
        ),
        {"attention.head_count_kv": [0, 0, 2, 0], "shortconv.l_cache": 3, "attention.layer_norm_rms_epsilon": 1e-5},
    ),
    "lfm2moe": (
        "lfm2moe",
        lambda: t.Lfm2MoeConfig(
            **b(
                layer_types=["conv", "conv", "full_attention", "conv"],
                conv_L_cache=3,
                num_experts=8,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
                num_dense_layers=1,
                use_expert_bias=True,
                norm_topk_prob=True,
                routed_scaling_factor=1.0,
            )
        ),
        {
            **E8,
            "attention.head_count_kv": [0, 0, 2, 0],
            "shortconv.l_cache": 3,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "leading_dense_block_count": 1,
            "expert_gating_func": 2,
        },
    ),
    "qwen3next": (
        "qwen3next",
        lambda: t.Qwen3NextConfig(**b(**QL, **QE, norm_topk_prob=True)),
        {
            **E8,
            **{k: v for k, v in QK.items() if k != "rope.dimension_sections"},
            "expert_shared_feed_forward_length": 40,
        },
    ),
    "qwen35": ("qwen35", lambda: t.Qwen3_5TextConfig(**b(**QL)), {**QK}),
    "qwen35moe": (
        "qwen35moe",
        lambda: t.Qwen3_5MoeTextConfig(**b(**QL, **QE)),
        {**E8, **QK, "expert_shared_feed_forward_length": 40},
    ),
    "glm4": (
        "glm4",
        lambda: t.Glm4Config(
            **b(
                head_dim=16,
                attention_bias=True,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            )
        ),
        {"rope.dimension_count": 8},
    ),
    "exaone4": (
        "exaone4",
        lambda: t.Exaone4Config(**b(sliding_window=7, layer_types=(["sliding_attention"] * 3 + ["full_attention"]))),
        {**W, "attention.sliding_window_pattern": [True, True, True, False]},
    ),
    "exaone4-full": (
        "exaone4",
        lambda: t.Exaone4Config(**b(sliding_window=None, layer_types=["full_attention"] * 4)),
        {},
    ),
    "cohere2": (
        "cohere2",
        lambda: t.Cohere2Config(**b(sliding_window=7, logit_scale=0.25)),
        {**W, "logit_scale": 0.25, "rope.scaling.type": "none", "rope.dimension_count": 16},
    ),
    "olmo3": (
        "olmo2",
        lambda: t.Olmo3Config(**b(sliding_window=7, layer_types=["sliding_attention"] * 3 + ["full_attention"])),
        {**W, "attention.sliding_window_pattern": [True, True, True, False], "attention.layer_norm_rms_epsilon": 1e-5},
    ),
    "olmo": (
        "olmo",
        lambda: t.OlmoConfig(**b(clip_qkv=1.5)),
        {"attention.layer_norm_epsilon": 1e-5, "attention.clamp_kqv": 1.5},
    ),
    "olmoe": (
        "olmoe",
        lambda: t.OlmoeConfig(**b(num_key_value_heads=4, num_experts=8, num_experts_per_tok=2, intermediate_size=32)),
        {"expert_count": 8, "expert_used_count": 2, "attention.layer_norm_rms_epsilon": 1e-5},
    ),
    "stablelm": (
        "stablelm",
        lambda: t.StableLmConfig(
            **b(
                use_qkv_bias=True,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
            )
        ),
        {"rope.dimension_count": 4, "use_parallel_residual": False},
    ),
    "phi2": (
        "phi2",
        lambda: t.PhiConfig(
            **b(
                num_key_value_heads=4,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            )
        ),
        {"rope.dimension_count": 8, "rope.freq_base": None},
    ),
    "nemotron": (
        "nemotron",
        lambda: t.NemotronConfig(
            **b(
                head_dim=16,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            )
        ),
        {"rope.dimension_count": 8, "attention.layer_norm_epsilon": 1e-5, "rope.scaling.type": "none"},
    ),
    "ernie4_5": ("ernie4_5", lambda: t.Ernie4_5Config(**b(head_dim=16)), {}),
    "ernie4_5-moe": (
        "ernie4_5-moe",
        lambda: t.Ernie4_5_MoeConfig(
            **b(
                moe_num_experts=8,
                moe_k=2,
                moe_intermediate_size=32,
                moe_num_shared_experts=2,
                moe_layer_start_index=1,
                moe_layer_end_index=3,
                moe_layer_interval=1,
            )
        ),
        {
            **E8,
            "interleave_moe_layer_step": 1,
            "leading_dense_block_count": 1,
            "expert_shared_count": 2,
            "expert_shared_feed_forward_length": 64,
        },
    ),
    "mistral3": (
        "mistral3",
        lambda: t.MistralConfig(**b(head_dim=16, sliding_window=None)),
        {"rope.dimension_count": 16},
    ),
    "ministral3": (
        "mistral3",
        lambda: t.Ministral3Config(
            **b(
                head_dim=16,
                sliding_window=None,
                rope_parameters={**yarn(8), "llama_4_scaling_beta": 0.1},
            )
        ),
        {
            "rope.dimension_count": 16,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 8,
            "rope.scaling.yarn_beta_fast": 32.0,
            "rope.scaling.yarn_beta_slow": 1.0,
            "rope.scaling.yarn_log_multiplier": 1.0,
            "attention.temperature_scale": 0.1,
        },
    ),
    "hunyuan-dense": (
        "hunyuan-dense",
        lambda: t.HunYuanDenseV1Config(
            **b(head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
        ),
        {"rope.scaling.type": "none", "rope.scaling.factor": 1.0},
    ),
    "hunyuan-moe": (
        "hunyuan-moe",
        lambda: t.HunYuanMoEV1Config(
            **b(
                head_dim=16,
                num_experts=8,
                moe_topk=2,
                intermediate_size=32,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            )
        ),
        {**E8, "rope.scaling.type": "none", "expert_shared_count": 1, "expert_shared_feed_forward_length": 32},
    ),
    "dots1": (
        "dots1",
        lambda: t.Dots1Config(
            **b(
                num_key_value_heads=4,
                head_dim=16,
                n_routed_experts=8,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
                n_shared_experts=1,
                first_k_dense_replace=1,
                n_group=1,
                topk_group=1,
                norm_topk_prob=True,
                routed_scaling_factor=2.5,
                sliding_window=None,
            )
        ),
        {
            **E8,
            "expert_shared_count": 1,
            "leading_dense_block_count": 1,
            "expert_gating_func": 2,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
        },
    ),
    "minimax-m2": (
        "minimax-m2",
        lambda: t.MiniMaxM2Config(
            **b(
                head_dim=16,
                num_local_experts=8,
                num_experts_per_tok=2,
                intermediate_size=32,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            )
        ),
        {**E8, "rope.dimension_count": 8, "expert_gating_func": 2},
    ),
    "mamba": (
        "mamba",
        lambda: t.MambaConfig(**MB, state_size=16, conv_kernel=4, expand=2, time_step_rank=4),
        {
            **R,
            **NO,
            "block_count": 4,
            "context_length": 1048576,
            "embedding_length": 64,
            "attention.head_count": 0,
            "feed_forward_length": 0,
            "ssm.conv_kernel": 4,
            "ssm.state_size": 16,
            "ssm.inner_size": 128,
            "ssm.time_step_rank": 4,
            "ssm.dt_b_c_rms": False,
        },
    ),
    "mamba2": (
        "mamba2",
        lambda: t.Mamba2Config(
            **MB, state_size=16, conv_kernel=4, expand=2, num_heads=8, head_dim=16, n_groups=2, chunk_size=16
        ),
        {
            **R,
            **NO,
            "block_count": 4,
            "context_length": 1048576,
            "embedding_length": 64,
            "attention.head_count": 0,
            "feed_forward_length": 0,
            "ssm.conv_kernel": 4,
            "ssm.state_size": 16,
            "ssm.inner_size": 128,
            "ssm.time_step_rank": 8,
            "ssm.group_count": 2,
        },
    ),
    "falcon-h1": (
        "falcon-h1",
        lambda: t.FalconH1Config(
            **b(
                head_dim=16,
                mamba_d_ssm=128,
                mamba_n_heads=8,
                mamba_d_head=16,
                mamba_n_groups=2,
                mamba_d_state=16,
                mamba_d_conv=4,
                mamba_rms_norm=True,
                mamba_norm_before_gate=False,
                mamba_chunk_size=16,
            )
        ),
        {**MAM, "attention.value_length": 16},
    ),
    "falcon-h1-nonorm": (
        "falcon-h1",
        lambda: t.FalconH1Config(
            **b(
                head_dim=16,
                mamba_d_ssm=128,
                mamba_n_heads=8,
                mamba_d_head=16,
                mamba_n_groups=2,
                mamba_d_state=16,
                mamba_d_conv=4,
                mamba_rms_norm=False,
                mamba_chunk_size=16,
            )
        ),
        {**MAM, "attention.value_length": 16},
    ),
    "nemotron_h": (
        "nemotron_h",
        lambda: t.NemotronHConfig(
            **b(
                head_dim=16,
                layers_block_type=["mamba", "mlp", "attention", "mamba"],
                mamba_num_heads=8,
                mamba_head_dim=16,
                n_groups=2,
                ssm_state_size=16,
                conv_kernel=4,
                chunk_size=16,
            )
        ),
        {
            **MAM,
            **R,
            "attention.head_count_kv": [0, 0, 2, 0],
            "feed_forward_length": [0, 96, 0, 0],
            "rope.scaling.finetuned": False,
            "attention.value_length": 16,
        },
    ),
    "nemotron_h_moe": (
        "nemotron_h_moe",
        lambda: t.NemotronHConfig(
            **b(
                head_dim=16,
                layers_block_type=["mamba", "moe", "attention", "moe"],
                mamba_num_heads=8,
                mamba_head_dim=16,
                n_groups=2,
                ssm_state_size=16,
                conv_kernel=4,
                chunk_size=16,
                n_routed_experts=8,
                num_experts_per_tok=2,
                moe_intermediate_size=32,
                moe_shared_expert_intermediate_size=40,
                n_shared_experts=1,
                routed_scaling_factor=2.5,
                norm_topk_prob=True,
                n_group=1,
                topk_group=1,
            )
        ),
        {
            **MAM,
            **R,
            **E8,
            "attention.head_count_kv": [0, 0, 2, 0],
            "feed_forward_length": [0, 32, 0, 32],
            "rope.scaling.finetuned": False,
            "attention.value_length": 16,
            "expert_shared_feed_forward_length": 40,
            "expert_shared_count": 1,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
            "expert_group_count": 1,
        },
    ),
    "phi3-longrope": (
        "phi3",
        lambda: t.Phi3Config(
            **b(
                pad_token_id=0,
                max_position_embeddings=1024,
                original_max_position_embeddings=256,
                sliding_window=None,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0, 12.0],
                    "short_factor": [1.0, 1.05, 1.1, 1.25, 1.4, 1.5, 1.75, 2.0],
                    "original_max_position_embeddings": 256,
                },
            )
        ),
        {"context_length": 1024, "rope.dimension_count": 16, "attention.sliding_window": 0, **LONGROPE},
    ),
}
