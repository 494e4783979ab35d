"""Of `gguf_cases.py`: models of which some layers keep a state."""

from __future__ import annotations

from typing import Any

import transformers as t

from tests.swarm.model.gguf_case_words import E8, GF, GK, Case, b

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
MAM = {"ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2, "ssm.time_step_rank": 8, "ssm.inner_size": 128}
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
HYBRIDS: dict[str, Case] = {
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
}
