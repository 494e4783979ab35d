#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0 without the mamba-ssm and causal-conv1d kernels, seen on 2026-11-28.
#
# A Mamba, Falcon-Mamba or Jamba model that gets several tokens together with the cache of those before them computes the
# new tokens as if the state were empty: the scan begins at zero whenever a call has more than one token. One token at a
# time is right. No warning is given, and shapes and cache look as they should.
#
# A good guess: `past_key_values` (`cache_params`) continues a text however many tokens come next, as for every attention
# model; a prompt may be fed in pieces.
#
# Whom it hurts: prompts in pieces to bound memory, a second turn of a conversation on top of a kept cache, assisted and
# speculative decoding, where several tokens are checked in one call: fluent text that has forgotten what it read.
#
# Output seen (largest difference of logits from the whole text in one call):
#   MambaForCausalLM:       one token at a time 9.1e-06, twelve at once 9.0e+00
#   FalconMambaForCausalLM: one token at a time 4.1e-06, twelve at once 3.2e+00
#   JambaForCausalLM:       one token at a time 1.3e-05, twelve at once 5.1e+00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import torch
from transformers import FalconMambaConfig, FalconMambaForCausalLM, JambaConfig, JambaForCausalLM, MambaConfig, MambaForCausalLM

HALF = 12
MAMBA = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.5}
JAMBA = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1,
    "num_experts_per_tok": 1, "mamba_d_state": 8, "initializer_range": 0.3,
}  # fmt: skip


def cache_of(out: object) -> dict[str, object]:
    kept = getattr(out, "cache_params", None)
    return {"cache_params": kept} if kept is not None else {"past_key_values": out.past_key_values}


def pieces(model: torch.nn.Module, tokens: torch.Tensor, size: int) -> torch.Tensor:
    """Logits of the second half, in calls of `size` tokens behind the cache of the first."""
    out = model(tokens[:, :HALF], use_cache=True)
    found = []
    for start in range(HALF, 2 * HALF, size):
        out = model(tokens[:, start : start + size], use_cache=True, **cache_of(out))
        found.append(out.logits)
    return torch.cat(found, 1)


for kind, config in (
    (MambaForCausalLM, MambaConfig(**MAMBA)),
    (FalconMambaForCausalLM, FalconMambaConfig(**MAMBA)),
    (JambaForCausalLM, JambaConfig(**JAMBA)),
):
    torch.manual_seed(0)
    model = kind(config).eval()
    tokens = torch.randint(0, 97, (1, 2 * HALF))
    with torch.inference_mode():
        whole = model(tokens, use_cache=False).logits[:, HALF:]
        one, many = (float((pieces(model, tokens, size) - whole).abs().max()) for size in (1, HALF))
    print(f"{kind.__name__ + ':':23} one token at a time {one:.1e}, twelve at once {many:.1e}")
    assert one < 1e-3 and many > 0.5, "the behaviour has changed"
PY
