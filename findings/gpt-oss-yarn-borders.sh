#!/usr/bin/env bash
# xllamacpp 2026.10.11549 (llama.cpp, prebuilt), transformers 5.23.0, gguf 0.19.0, torch 2.13.0, seen on 2026-11-28.
#
# gpt-oss is trained with a YaRN rotation whose ramp between unscaled and scaled frequencies begins and ends inside a
# dimension: its config says "truncate": false, and for the published sizes the borders are 8.09 and 17.40. llama.cpp reads
# a gpt-oss file, which has no key for this, and rounds the borders outwards, to 8 and 18, as for every other YaRN model.
#
# A good guess: a file of a model that llama.cpp supports by name gives the model's own logits, up to rounding. Here every
# dimension of the ramp turns by another angle than in training, and more so with each token.
#
# Whom it hurts: who compares a GGUF of gpt-oss with the original (a quantisation test, a verifier, a ring of unlike
# backends) and takes the difference for the price of fewer bits; with all weights in float32 it is still there.
#
# Output seen (largest difference of log-probabilities over 256 tokens, all weights float32):
#   llama.cpp against transformers with "truncate": false, as published: 1.9e+00
#   llama.cpp against transformers with "truncate": true:                1.3e-04
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.23.0 gguf==0.19.0 xllamacpp==2026.10.11549 numpy
cat >"$folder/peer.py" <<'PY'
"""Log-probabilities that llama.cpp gives behind each token of a text."""
import json, sys
import numpy as np
import xllamacpp as x

path, out, vocab = sys.argv[1], sys.argv[2], int(sys.argv[3])
text, every = json.loads(sys.argv[4]), int(sys.argv[5])
params = x.CommonParams()
params.model.path, params.n_ctx, params.n_batch, params.n_ubatch = path, 512, 512, 512
params.n_parallel, params.warmup, params.cpuparams.n_threads = 1, False, 1
params.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cache_type_k = params.cache_type_v = x.ggml_type.GGML_TYPE_F32
server, rows = x.Server(params), []
for n in range(every, len(text) + 1, every):
    order = {"prompt": text[:n], "n_predict": 1, "n_probs": vocab, "temperature": 0, "cache_prompt": False}
    answer = server.handle_completions(order)
    answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
    row = np.full(vocab, -np.inf)
    for found in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        row[found["id"]] = found["logprob"]
    rows.append(row)
np.save(out, rows)
PY
"$folder/venv/bin/python" - "$folder" <<'PY'
import json, subprocess, sys
from pathlib import Path

import gguf, numpy as np, torch
from transformers import GptOssConfig, GptOssForCausalLM

folder, VOCAB, LAYERS, EXPERTS, HEAD, EVERY = Path(sys.argv[1]), 64, 2, 4, 64, 16
YARN = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "rope_theta": 150000.0,
        "original_max_position_embeddings": 4096}  # fmt: skip


def made(truncate):
    torch.manual_seed(7)
    config = GptOssConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=HEAD, num_local_experts=EXPERTS, num_experts_per_tok=2, sliding_window=1024,
        max_position_embeddings=131072, initializer_range=0.3, rope_parameters={**YARN, "truncate": truncate},
        pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    return GptOssForCausalLM(config).eval().float()


def tensors(model):
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    yield "output_norm.weight", state["model.norm.weight"]
    yield "output.weight", state["lm_head.weight"]
    for i in range(LAYERS):
        at, to = f"model.layers.{i}.", f"blk.{i}."
        for part in "qkv":
            for end in ("weight", "bias"):
                yield f"{to}attn_{part}.{end}", state[f"{at}self_attn.{part}_proj.{end}"]
        for end in ("weight", "bias"):
            yield f"{to}attn_output.{end}", state[f"{at}self_attn.o_proj.{end}"]
            yield f"{to}ffn_gate_inp.{end}", state[f"{at}mlp.router.{end}"]
        yield f"{to}attn_sinks.weight", state[f"{at}self_attn.sinks"]
        yield f"{to}attn_norm.weight", state[f"{at}input_layernorm.weight"]
        yield f"{to}post_attention_norm.weight", state[f"{at}post_attention_layernorm.weight"]
        both, bias = state[f"{at}mlp.experts.gate_up_proj"], state[f"{at}mlp.experts.gate_up_proj_bias"]
        for part, first in (("gate", 0), ("up", 1)):  # gate and up take turns
            yield f"{to}ffn_{part}_exps.weight", both[:, :, first::2].transpose(0, 2, 1)
            yield f"{to}ffn_{part}_exps.bias", bias[:, first::2]
        yield f"{to}ffn_down_exps.weight", state[f"{at}mlp.experts.down_proj"].transpose(0, 2, 1)
        yield f"{to}ffn_down_exps.bias", state[f"{at}mlp.experts.down_proj_bias"]


def write(model, path):
    writer = gguf.GGUFWriter(path, "gpt-oss")
    config = model.config
    writer.add_vocab_size(VOCAB)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_block_count(LAYERS)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(2)
    writer.add_sliding_window(config.sliding_window)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(YARN["rope_theta"])
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(YARN["factor"])
    writer.add_rope_scaling_orig_ctx_len(YARN["original_max_position_embeddings"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<t{i}>" for i in range(VOCAB)])
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, data in tensors(model):
        writer.add_tensor(name, np.ascontiguousarray(data, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


torch.set_num_threads(1)
text = torch.randint(2, VOCAB, (256,), generator=torch.Generator().manual_seed(3)).tolist()
write(made(False), folder / "a.gguf")
order = [sys.executable, folder / "peer.py", folder / "a.gguf", folder / "rows.npy", str(VOCAB), json.dumps(text), str(EVERY)]
subprocess.run(order, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=300)
theirs = np.load(folder / "rows.npy")
apart = {}
for truncate in (False, True):
    with torch.inference_mode():
        logits = made(truncate)(torch.tensor([text])).logits[0, EVERY - 1 :: EVERY]
    apart[truncate] = float(np.abs(torch.log_softmax(logits.double(), -1).numpy() - theirs).max())
print(f'llama.cpp against transformers with "truncate": false, as published: {apart[False]:.1e}')
print(f'llama.cpp against transformers with "truncate": true:                {apart[True]:.1e}')
assert apart[True] < 1e-3 < 100 * apart[True] < apart[False], "this has changed"
PY
