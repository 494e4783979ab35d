"""Of `gguf_cases.py`: mixtures of experts."""

from __future__ import annotations

import transformers as t

from tests.swarm.model.gguf_case_words import E8, GF, GK, Case, b, yarn

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
MIXTURES: dict[str, Case] = {
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
    "olmoe": (
        "olmoe",
        lambda: t.OlmoeConfig(**b(num_key_value_heads=4, num_experts=8, num_experts_per_tok=2, intermediate_size=32)),
        {"expert_count": 8, "expert_used_count": 2, "attention.layer_norm_rms_epsilon": 1e-5},
    ),
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
}
