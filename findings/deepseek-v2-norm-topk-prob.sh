#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, seen on 2026-11-29.
#
# DeepseekV2Config and DeepseekV4Config have a field `norm_topk_prob`, and no line of their models reads it: V2 never
# divides the chosen experts' shares by their sum, V4 always does, whatever the field says. No warning is given.
#
# A good guess: as in DeepSeek V3, V3.2, Qwen and GLM (and in the code that DeepSeek released with V2), true divides and
# false does not. In DeepSeek V3 of the same transformers it does.
#
# Whom it hurts: whoever loads a model of type deepseek_v2 that was trained with divided shares, or converts a GGUF whose
# `expert_weights_norm` is true to this class: it loads without a word and computes other text.
#
# Output seen (largest difference of logits between true and false):
#   DeepseekV2ForCausalLM: 0.0e+00
#   DeepseekV4ForCausalLM: 0.0e+00
#   DeepseekV3ForCausalLM: 1.8e+01
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import torch
from transformers import AutoModelForCausalLM, DeepseekV2Config, DeepseekV3Config, DeepseekV4Config

SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 3,
    "num_attention_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "max_position_embeddings": 64, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1, "topk_group": 1,
}  # fmt: skip
POOLED = {
    "num_key_value_heads": 1, "head_dim": 8, "num_local_experts": 4, "partial_rotary_factor": 0.5, "sliding_window": 8,
    "layer_types": ["sliding_attention"] * 3, "mlp_layer_types": ["moe"] * 3, "q_lora_rank": 8, "o_groups": 2,
    "o_lora_rank": 8,
}  # fmt: skip

apart = {}
for kind, more in ((DeepseekV2Config, LATENT), (DeepseekV4Config, POOLED), (DeepseekV3Config, LATENT)):
    said = []
    for divide in (True, False):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(kind(**SMALL, **more, norm_topk_prob=divide)).eval().float()
        assert model.config.norm_topk_prob is divide
        for weight in model.parameters():
            weight.data = torch.randn_like(weight)
        with torch.inference_mode():
            said.append(model(torch.arange(3, 15)[None], use_cache=False).logits)
    name = type(model).__name__
    apart[name] = float((said[0] - said[1]).abs().max())
    print(f"{name}: {apart[name]:.1e}")
assert apart["DeepseekV2ForCausalLM"] == apart["DeepseekV4ForCausalLM"] == 0 < 0.1 < apart["DeepseekV3ForCausalLM"], (
    "the behaviour has changed"
)
PY
