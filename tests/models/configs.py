"""A tiny config for every class of transformers' causal mapping, as far as one can be built by rule.

The same small values are tried under all the names that configs have for them; a config class takes those that it has.
What a family needs beyond that (windows, multipliers, experts) stands in `SPECIAL`.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from swarm.model.files.causal import causal_class

LAYERS = 6
VOCAB = 97
CONTEXT = 256

_BASE: dict[str, Any] = {
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "dim": 32, "word_embed_proj_dim": 32, "embedding_size": 32,
    "intermediate_size": 48, "ffn_dim": 48, "d_ff": 48, "ffn_hidden_size": 48, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "n_inner": 48, "shared_expert_intermediate_size": 16, "shared_intermediate_size": 16,
    "num_hidden_layers": LAYERS, "n_layer": LAYERS, "n_layers": LAYERS, "num_layers": LAYERS,
    "decoder_layers": LAYERS, "encoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "decoder_attention_heads": 4, "encoder_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "num_heads": 4,
    "vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "n_positions": CONTEXT, "n_ctx": CONTEXT,
    "max_seq_len": CONTEXT, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_intermediate_size": 16, "moe_k": 2, "moe_topk": 2,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_shared_experts": 1,
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_dense_layers": 1, "mlp_layer_types": None, "layer_types": None, "moe_layer_start_index": 1,
    "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2,
    "tie_word_embeddings": False, "use_cache": True, "is_decoder": True,
}  # fmt: skip

SHARING = ["sliding_attention", "full_attention"] * (LAYERS // 2)
"""Kinds of layers of which the last two, that keep no keys of their own, find both kinds before them."""

MAMBA2 = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_expand": 2,
    "mamba_chunk_size": 16,
}  # fmt: skip

DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"] * (LAYERS // 3),
}  # fmt: skip

GROWING = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 32.0, "original_max_position_embeddings": 8, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
"""Rotation of models whose queries grow with their position, within the sweep's short texts."""

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
"""Of the text half of a model that takes more."""

PICTURE = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip

SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), DELTA),
    "olmo_hybrid": {**DELTA, "linear_num_key_heads": 4},
    "granite": {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "granitemoe": {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "granitemoeshared": {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "hyperclovax": {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "mistral": {"sliding_window": 7},
    "mixtral": {"sliding_window": 7},
    "ministral3": {"rope_parameters": GROWING},
    "mistral4": {"rope_parameters": GROWING},
    "llama4_text": {
        "attention_chunk_size": 6,
        "floor_scale": 4,
        "attn_scale": 0.5,
        "no_rope_layers": [1, 1, 0] * (LAYERS // 3),
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 48,
    },
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3},
    "qwen2_moe": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3, "decoder_sparse_step": 2},
    "qwen3_moe": {"decoder_sparse_step": 2},
    "phimoe": {"sliding_window": 7},
    "phi3": {"sliding_window": 7},
    "gemma2": {"sliding_window": 7, "query_pre_attn_scalar": 16},
    "gemma3_text": {"sliding_window": 7, "query_pre_attn_scalar": 16},
    "cohere2": {"sliding_window": 7},
    "starcoder2": {"sliding_window": 7},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "doge": {"keep_window_size": 5},
    "gemma3n_text": {"layer_types": SHARING, "activation_sparsity_pattern": [0.0] * LAYERS, "sliding_window": 7},
    "gemma4_text": {"layer_types": SHARING, "sliding_window": 7, "global_head_dim": 8, "enable_moe_block": False},
    "gemma4_unified_text": {
        "layer_types": SHARING,
        "sliding_window": 7,
        "global_head_dim": 16,
        "num_kv_shared_layers": 0,
    },
    "gemma4_unified": {
        "text_config": {
            "model_type": "gemma4_unified_text",
            **TEXT,
            "layer_types": SHARING,
            "sliding_window": 7,
            "global_head_dim": 16,
        },
        "vision_config": None,
        "audio_config": None,
    },
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "partial_rotary_factor": 0.5,
        "layer_types": ["sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"]
        * (LAYERS // 3),
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe", "moe", "moe"],
        "sliding_window": 5,
        "o_groups": 2,
        "o_lora_rank": 8,
        "index_n_heads": 8,
        "index_head_dim": 8,
        "index_topk": 3,
    },
    "zaya": {"num_experts_per_tok": 1},
    "qwen4_exp_text": {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "indexed_attention", "linear_attention"] * (LAYERS // 3),
        "hc_count": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"axial_pos_embds": False, "attention_head_size": 8, "feed_forward_size": 48},
    "dots3_note_text": {"index_topk": 4, "index_head_dim": 8, "index_n_heads": 4, "sliding_window": 7},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]], "window_size": 7},
    "moshi": {"audio_encoder_config": None, "depth_decoder_config": None},
    "granitemoehybrid": {
        **MAMBA2,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"] * (LAYERS // 3),
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "bamba": {**MAMBA2, "attn_layer_indices": [1, 4]},
    "falcon_h1": {**MAMBA2, "mamba_d_ssm": 64},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "linear_attention", "mlp", "full_attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 16,
        "moe_shared_expert_intermediate_size": 16,
        "moe_latent_size": None,
    },
    "mamba": {"state_size": 8, "time_step_rank": 4, "expand": 2, "intermediate_size": 64},
    "falcon_mamba": {"state_size": 8, "time_step_rank": 4, "expand": 2, "intermediate_size": 64},
    "jamba": {
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "mamba_expand": 2,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "expand": 2, "chunk_size": 16},
    "bailing_hybrid": {
        "linear_num_heads": 4,
        "linear_head_dim": 8,
        "num_key_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"] * (LAYERS // 3),
    },
    "kimi_linear": {
        "linear_num_heads": 4,
        "linear_head_dim": 8,
        "num_key_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"] * (LAYERS // 3),
    },
    "longcat_flash": {
        "head_dim": 4,
        "qk_head_dim": 12,
        "zero_expert_num": 2,
        "expert_ffn_hidden_size": 16,
        "num_layers": 6,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
        "sliding_window": 7,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")
        },
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid", "hybrid", "linear_attention"],
        "mamba_d_state": 8,
        "mamba_ngroups": 2,
        "n_mamba_heads": 8,
        "head_dim": 16,
        "mamba_headdim": 8,
        "chunk_size": 16,
        "num_key_value_heads": 4,
        "use_mem_rope": True,
        "adapter_rank": 4,
        "num_mem_blocks": 2,
        "use_shared_attention_adapter": True,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", **TEXT, "sliding_window": 7, "query_pre_attn_scalar": 16},
        "vision_config": {"model_type": "siglip_vision_model", **PICTURE},
        "mm_tokens_per_image": 4,
        "tie_word_embeddings": True,
    },
    "got_ocr2": {
        "text_config": {"model_type": "qwen2", **TEXT},
        "vision_config": {**PICTURE, "output_channels": 8, "mlp_dim": 16, "global_attn_indexes": [1], "window_size": 2},
    },
    "fuyu": {
        "text_config": {"model_type": "persimmon", **TEXT, "num_key_value_heads": 4},
    },
    "moss_transcribe_diarize": {
        "text_config": {"model_type": "qwen3", **TEXT},
        "audio_config": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16},
    },
    "mllama": {
        "text_config": {"model_type": "mllama_text_model", **TEXT, "cross_attention_layers": [1, 4]},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_output_dim": 16,
            "intermediate_layers_indices": [0],
        },
    },
    "big_bird": {"attention_type": "original_full"},
    "xmod": {"languages": ["en_XX", "de_DE"], "default_language": "de_DE"},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "deepseek_v32": {"index_topk": 4, "index_head_dim": 8, "index_n_heads": 8},
    "hy_v4": {
        "index_topk": 4,
        "index_head_dim": 8,
        "index_n_heads": 8,
        "indexer_types": ["full", "full", "shared", "shared", "full", "shared"],
    },
    "glm_moe_dsa": {
        "index_topk": 4,
        "index_head_dim": 8,
        "index_n_heads": 8,
        "indexer_types": ["full", "full", "shared", "shared", "full", "shared"],
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"] * (LAYERS // 3)},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"] * (LAYERS // 3)},
}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon-alibi": ("falcon", {"alibi": True}),
    "falcon-new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-heads": ("falcon", {"multi_query": False, "parallel_attn": False, "bias": True}),
    "bert-tied": ("bert", {"tie_word_embeddings": True}),
    "bart-tied": ("bart", {"tie_word_embeddings": True, "scale_embedding": True}),
    "opt-narrow": ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "electra-narrow": ("electra", {"embedding_size": 16}),
    "bloom-tied": ("bloom", {"tie_word_embeddings": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-dynamic": (
        "llama",
        {"max_position_embeddings": 24, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "gemma4-large": (
        "gemma4_text",
        {
            "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "attention_k_eq_v": True,
            "num_global_key_value_heads": 1, "global_head_dim": 16, "enable_moe_block": True, "top_k_experts": 2,
            "use_bidirectional_attention": "vision", "tie_word_embeddings": True,
        },
    ),
    "gemma4_unified-shared": ("gemma4_unified_text", {"num_kv_shared_layers": 2, "tie_word_embeddings": True}),
    "gemma4_unified-large": (
        "gemma4_unified_text",
        {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "final_logit_softcapping": 3.0},
    ),
    "gemma4-tied": ("gemma4_text", {"tie_word_embeddings": True, "global_head_dim": 16, "use_double_wide_mlp": True}),
    "minimax_m3-sparse": (
        "minimax_m3_vl_text",
        {
            "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"] * (LAYERS // 3),
            "index_n_heads": 2, "index_head_dim": 8, "index_block_size": 3, "index_topk_blocks": 3,
        },
    ),
    "phi3-longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [2.0, 3.0, 5.0, 8.0], "original_max_position_embeddings": 16,
            },
        },
    ),
    "deepseek_v32-ties": ("deepseek_v32", {"index_n_heads": 1}),
    "hy_v4-ties": ("hy_v4", {"index_n_heads": 1}),
    "zamba2-own": ("zamba2", {"tie_word_embeddings": False, "num_mem_blocks": 1}),
    "zamba2-one": ("zamba2", {"num_mem_blocks": 1, "use_shared_attention_adapter": False, "use_mem_rope": False}),
    "qwen2_moe-plain": ("qwen2_moe", {"use_sliding_window": False}),
    "phimoe-plain": ("phimoe", {"sliding_window": None}),
}  # fmt: skip
"""Cases beyond one per class: name -> (type, values on top of the type's)."""


def all_types() -> list[str]:
    """Model types of the causal mapping, and those beside it that have a class of their own, sorted."""
    whole = {kind: config for kind, config in CONFIG_MAPPING.items() if not getattr(config, "base_config_key", "")}
    beside = {kind for kind, config in whole.items() if causal_class(config) is not None}
    return sorted({kind for kind, config in CONFIG_MAPPING.items() if config in MODEL_FOR_CAUSAL_LM_MAPPING} | beside)


def class_name(case: str) -> str:
    found = causal_class(CONFIG_MAPPING[VARIANTS.get(case, (case, {}))[0]])
    assert found is not None
    return found.__name__


def tiny_config(case: str) -> Any:
    """The tiny config of a model type or a variant. Raises whatever its class raises when the rule does not fit it."""
    kind, more = VARIANTS.get(case, (case, {}))
    cls = CONFIG_MAPPING[kind]
    return cls(**copy.deepcopy({**_by_rule(cls), **SPECIAL.get(kind, {}), **more}))  # configs write into what they get


def _by_rule(cls: Any) -> dict[str, Any]:
    """The small values under the names that a config class has, also for the configs inside."""
    fields = set(getattr(cls, "__dataclass_fields__", ())) | set(inspect.signature(cls.__init__).parameters)
    fields |= set(getattr(cls, "attribute_map", {}))
    values = {key: value for key, value in _BASE.items() if key in fields and value is not None}
    mapped = getattr(cls, "attribute_map", {})
    for standard, own in mapped.items():  # one value under one name
        if standard in values and own in values and own != standard:
            values.pop(standard)
    if "qk_rope_head_dim" in fields:  # there the head's width is that of the rotated part
        values.pop("head_dim", None)
        if "num_key_value_heads" in values:  # latent attention has as many of them as of the others
            values["num_key_value_heads"] = values["num_attention_heads"]
    for name, inside in getattr(cls, "sub_configs", {}).items():
        if hasattr(inside, "model_type") and inside.model_type:
            values[name] = {**_by_rule(inside), **SPECIAL.get(inside.model_type, {})}
    return values
