"""A random Llama of a few thousand weights, as a block and as a plain transformers model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swarm.model.block import Block, load_block
from swarm.model.checkpoint import open_model
from swarm.model.store import ModelStore

VOCAB = 61


def save_tiny(folder: Path, *, layers: int = 2, seed: int = 0, vocab: int = VOCAB) -> LlamaForCausalLM:
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
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" not in name:
            weight.copy_(torch.randn_like(weight) * (0.3 if "embed" in name else 0.2))
    model.save_pretrained(folder)
    return model


def tiny_block(folder: Path, device: str = "cpu") -> Block:
    checkpoint = open_model(str(folder), ModelStore(folder / "store"))
    return load_block(checkpoint, 0, checkpoint.manifest.n_layers, torch.device(device), torch.float32)
