"""A real model whose every token is followed by a known one, over a tokenizer as sentencepiece makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "[TOOL_CALLS]", "<|im_end|>", "<|note|>"]
WORDS = ["▁capital", "▁is", "▁Paris", "▁big", "▁city", "▁call", "▁after", "▁done", "▁quiet", "▁off", "▁hard", "▁think",
         "▁list", "▁cry", "▁end", '[{"name":▁"add",▁', '"arguments":▁{"a":▁1}}]', "▁shout", "▁loud", "▁write", "▁mark",
         "[TOOL_", "CALLS]", '[{"name":▁"add",▁"arguments":▁{}}]']  # fmt: skip
EMOJI = [f"<0x{byte:02X}>" for byte in "😀".encode()]
SCRIPT = [
    # "capital is" -> "Paris😀 big city", with a special token on the way
    ["▁is", "▁Paris", *EMOJI, "▁big", "<|note|>", "▁city", "</s>"],
    ["▁call", "[TOOL_CALLS]", '[{"name":▁"add",▁', '"arguments":▁{"a":▁1}}]', "</s>"],
    ["▁write", "▁mark", "[TOOL_", "CALLS]", '[{"name":▁"add",▁"arguments":▁{}}]', "</s>"],
    ["▁end", "▁done", "<|im_end|>", "▁after", "</s>"],
    ["▁off", "▁quiet", "</s>"],
    ["▁think", "▁hard", "</s>"],
    ["▁cry", "▁shout", "▁loud", "</s>"],
]
TEMPLATE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ bos_token }}{% if tools %}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %} off{% endif %}"
    "{% if reasoning_effort is defined and reasoning_effort == 'high' %} think{% endif %}"
)


def spoken_tokenizer() -> PreTrainedTokenizerFast:
    """Words with ▁ for the space before them, every byte, and special tokens."""
    pieces = [(token, 0.0) for token in SPECIAL] + [(f"<0x{b:02X}>", -20.0) for b in range(256)]
    pieces += [(word, -1.0) for word in WORDS] + [("▁", -9.0)]
    core = Tokenizer(models.Unigram(pieces, unk_id=1, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def spoken_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Attention and feed-forward add nothing, so what follows a token is what the head says of its embedding."""
    vocab = len(tokenizer)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=320, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    assert vocab <= config.hidden_size
    follows = {a: b for line in SCRIPT for a, b in zip(ids(tokenizer, line), ids(tokenizer, line[1:]), strict=False)}
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(vocab, config.hidden_size))
        # Others are nearly alike and fall with their id, so the likeliest alternatives are the special tokens.
        model.lm_head.weight.copy_(-torch.arange(vocab)[:, None].float().expand(-1, config.hidden_size) / 1000)
        for token, after in follows.items():
            model.lm_head.weight[after, token] = 1.0
    return model


def ids(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[str]) -> list[int]:
    return [int(token) for token in tokenizer.convert_tokens_to_ids(list(tokens))]


def save_spoken(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = spoken_tokenizer()
    spoken_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer
