"""A random Llama of a few thousand weights, as a block and as a plain transformers model."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from swarm.model.block import Block, load_block
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore

VOCAB = 61


def save_tiny(
    folder: Path, *, layers: int = 2, seed: int = 0, vocab: int = VOCAB, tied: bool = True
) -> LlamaForCausalLM:
    """A model with sharp, varied outputs, saved to `folder`; returns it."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            weight.copy_(torch.randn_like(weight) * (0.3 if "embed" in name else 0.2))
    model.save_pretrained(folder)
    return model


def tiny_block(folder: Path, device: str = "cpu") -> Block:
    """In torch's own kernels, as on a GPU: a fake CUDA records what torch calls."""
    checkpoint = open_model(str(folder), ModelStore(folder / "store"))
    return load_block(checkpoint, 0, checkpoint.manifest.n_layers, torch.device(device), torch.float32, exact=False)


TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def tiny_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Bytes as tokens, with <s> and </s> around the turns of a conversation; 258 ids."""
    alphabet = sorted(ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1, **{char: i + 2 for i, char in enumerate(alphabet)}}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.chat_template = template
    return fast
