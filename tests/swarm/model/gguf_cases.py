"""Tiny random models of GGUF architectures, and the metadata that llama.cpp's converter states for each.

They are held against transformers in `test_gguf_families.py`, and against llama.cpp by `python -m tests.models.gguf`.
"""

from __future__ import annotations

import transformers as t

from tests.swarm.model.gguf_case_words import Case, b, yarn
from tests.swarm.model.gguf_hybrid_cases import HYBRIDS
from tests.swarm.model.gguf_mixture_cases import MIXTURES

W = {"attention.sliding_window": 7}
LONGROPE = {"rope.scaling.original_context_length": 256, "rope.scaling.attn_factor": 1.118033988749895}
DENSE: dict[str, Case] = {
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
CASES: dict[str, Case] = {**DENSE, **MIXTURES, **HYBRIDS}
