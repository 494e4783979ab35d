#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, CPU, float32, seen on 2026-11-29.
#
# The indexers of DeepSeek V3.2 and GLM-5 cut each head's scores off at zero (ReLU), so positions that no head looks for
# score exactly 0.0, all of them. Where fewer than `index_topk` positions score above zero, `topk` decides which of those
# at zero a row attends to, and what it takes follows from how many positions it was given: with a cache (a row of keys
# for each token so far) it takes others than over the whole text (all keys, the later ones at -inf). No warning is given.
#
# A good guess: the cache changes a row's logits by rounding only, as everywhere else.
#
# Whom it hurts: whoever compares logits of cached and uncached runs, of prompts in pieces, or of drafts checked together
# with a token at a time: tiny test models with one or a few index heads differ by as much as their logits are large.
# Models with many heads (64) seldom have such ties. A rule for ties (the earliest first) makes both runs agree.
#
# Output seen (largest difference of logits, over the largest logit):
#   deepseek_v32, 1 index heads: a token at a time against the whole text 1.3e+00, with the earliest of ties 1.3e-06
#   deepseek_v32, 8 index heads: a token at a time against the whole text 1.3e-06, with the earliest of ties 1.3e-06
#   glm_moe_dsa, 1 index heads: a token at a time against the whole text 1.1e+00, with the earliest of ties 1.0e-06
#   glm_moe_dsa, 8 index heads: a token at a time against the whole text 1.3e-06, with the earliest of ties 1.3e-06
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import contextlib

import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, DeepseekV32Config, GlmMoeDsaConfig

LAYERS, TOKENS = 4, 20
SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 4,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 4, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "index_topk": 4, "index_head_dim": 8, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


class Earliest(TorchFunctionMode):
    """`topk` by a stable sort."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in (torch.topk, torch.Tensor.topk):
            return func(*args, **(kwargs or {}))
        given = {**dict(zip(("input", "k", "dim"), args)), **(kwargs or {})}
        value, place = torch.sort(given["input"], dim=-1, descending=True, stable=True)
        return torch.return_types.topk((value[..., : given["k"]], place[..., : given["k"]]))


@torch.inference_mode()
def apart(model, rule) -> float:
    tokens = torch.arange(TOKENS)[None] * 7 % 97
    with rule:
        cache, rows = None, []
        for i in range(TOKENS):
            out = model(tokens[:, i : i + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0, -1])
        whole = model(tokens, use_cache=False).logits[0]
    return float((torch.stack(rows) - whole).abs().max() / whole.abs().max())


found = {}
for kind in (DeepseekV32Config, GlmMoeDsaConfig):
    for heads in (1, 8):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(kind(**SMALL, index_n_heads=heads), dtype=torch.float32).eval()
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            weight.data = weight.data + 0.1 * noise if weight.dim() == 1 or "norm" in name else noise * 0.2
        own, ruled = apart(model, contextlib.nullcontext()), apart(model, Earliest())
        found[kind.model_type, heads] = own
        print(
            f"{kind.model_type}, {heads} index heads: a token at a time against the whole text {own:.1e}, "
            f"with the earliest of ties {ruled:.1e}"
        )
        assert ruled < 1e-4, "the behaviour has changed"
assert all(found[kind, 1] > 0.01 for kind in ("deepseek_v32", "glm_moe_dsa")), "the behaviour has changed"
PY
