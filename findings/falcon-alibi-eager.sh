#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, seen on 2026-11-28.
#
# Falcon models with ALiBi (falcon-rw-1b and -7b) have biases that grow with distance in the place of rotation. With
# attn_implementation="sdpa", the default, they are added to the scores once. With "eager" they are added twice: the
# model has put them into the mask, and the attention adds them to the scores beside the mask.
#
# A good guess: the two implementations differ by rounding, as they do for the same model without ALiBi, and eager is the
# reference that one falls back to (for attention weights, for hooks, for a device without fused kernels).
#
# Whom it hurts: whoever asks for `output_attentions`, exports, quantises or compares a Falcon-RW with eager attention:
# other logits and other tokens, no warning; and whoever takes eager for the truth when testing an engine of their own.
#
# Output seen:
#   without ALiBi: eager and sdpa differ by 0.0e+00
#   with ALiBi:    eager and sdpa differ by 7.6e-02; the likeliest token is another one at 4 of 64 places
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy
"$folder/venv/bin/python" - <<'PY'
import torch
from transformers import FalconConfig, FalconForCausalLM

PLACES = 64


def logits(alibi: bool, how: str) -> torch.Tensor:
    config = FalconConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=97, alibi=alibi,
        attn_implementation=how,
    )  # fmt: skip
    torch.manual_seed(0)
    model = FalconForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    assert model.config._attn_implementation == how
    with torch.inference_mode():
        return model(torch.randint(0, 97, (1, PLACES), generator=torch.Generator().manual_seed(1))).logits[0]


plain = float((logits(False, "eager") - logits(False, "sdpa")).abs().max())
eager, sdpa = logits(True, "eager"), logits(True, "sdpa")
apart, other = float((eager - sdpa).abs().max()), int((eager.argmax(-1) != sdpa.argmax(-1)).sum())
print(f"without ALiBi: eager and sdpa differ by {plain:.1e}")
print(f"with ALiBi:    eager and sdpa differ by {apart:.1e}; the likeliest token is another one at {other} of {PLACES} places")
assert plain < 1e-3 and apart > 0.05 and other > 0, "the behaviour has changed"
PY
