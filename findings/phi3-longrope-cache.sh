#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0, seen on 2026-11-28.
#
# A Phi-3 model with `longrope` has two sets of rotary frequencies: one for texts up to original_max_position_embeddings
# tokens, one for longer ones. When a text that `generate` writes passes that length, Phi3ForCausalLM throws its KV cache
# away once and computes the whole text again with the long frequencies.
#
# A good guess: `generate` with a cache is a loop of `forward(next token, past_key_values=cache)`, as for every other
# decoder: keys keep the rotation that they were written with. It is not: from the first token beyond the switch the loop's
# logits are others, and no warning is given.
#
# Whom it hurts: whoever serves Phi-3, Phi-3.5 or Phi-4-mini with a cache of their own (a server, a pipeline over several
# machines, speculative decoding) and checks it with a loop of forwards: the check passes and users get other text than
# the reference's. A cache that was filled before the switch is of no use behind it.
#
# Output seen:
#   up to the switch: loop and generate differ by 1.1e-06
#   beyond it:        loop and generate differ by 1.1e+01, the whole text at once and generate by 9.1e-06
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy
"$folder/venv/bin/python" - <<'PY'
import torch
from transformers import Phi3Config, Phi3ForCausalLM

SWITCH, PROMPT, NEW = 32, 24, 16
torch.manual_seed(3)
config = Phi3Config(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=128, original_max_position_embeddings=SWITCH, initializer_range=0.3,
    pad_token_id=0, bos_token_id=None, eos_token_id=None,
    rope_parameters={
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": SWITCH,
        "short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)],
    },
)  # fmt: skip
model = Phi3ForCausalLM(config).eval()
prompt = torch.randint(1, 64, (1, PROMPT))
with torch.inference_mode():
    out = model.generate(
        prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, output_logits=True,
        return_dict_in_generate=True, use_cache=True,
    )  # fmt: skip
    text = out.sequences
    told = torch.cat(out.logits)
    step = model(prompt, use_cache=True)
    loop = [step.logits[:, -1]]
    for i in range(PROMPT, PROMPT + NEW - 1):
        step = model(text[:, i : i + 1], past_key_values=step.past_key_values, use_cache=True)
        loop.append(step.logits[:, -1])
    looped = torch.cat(loop)
    whole = torch.cat([model(text[:, : PROMPT + i], use_cache=False).logits[:, -1] for i in range(NEW)])
before = SWITCH - PROMPT  # how many of the tokens were drawn from texts no longer than the switch
apart = lambda a, b: float((a - b).abs().max())  # noqa: E731
near = apart(looped[:before], told[:before])
far, again = apart(looped[before + 1 :], told[before + 1 :]), apart(whole[before + 1 :], told[before + 1 :])
print(f"up to the switch: loop and generate differ by {near:.1e}")
print(f"beyond it:        loop and generate differ by {far:.1e}, the whole text at once and generate by {again:.1e}")
assert near < 1e-4 and again < 1e-3 and far > 0.1, "the behaviour has changed"
PY
