"""Tiny random models of every supported family, and rows for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from swarm.model.block import Block, Job, load_block
from swarm.model.files.causal import causal_class
from swarm.model.files.manifest import Manifest, TensorEntry
from swarm.model.kvcache import KVPool, SessionKV
from swarm.model.rows import Commits, Layout, Rows, check_untrusted, no_commits

VOCAB = 97
CPU = torch.device("cpu")
_BASE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_HEADS = {**_BASE, "head_dim": 16}


def tiny_config(family: str) -> Any:
    t = transformers
    match family:
        case "llama":
            return t.LlamaConfig(**_BASE)
        case "llama-tied":
            return t.LlamaConfig(**_BASE, tie_word_embeddings=True)
        case "qwen2":  # the first three layers see all, the others a window
            return t.Qwen2Config(**_BASE, use_sliding_window=True, sliding_window=7, max_window_layers=3)
        case "qwen3":
            return t.Qwen3Config(**_HEADS)
        case "mistral":
            return t.MistralConfig(**_BASE, sliding_window=7)
        case "gemma2":
            return t.Gemma2Config(**_HEADS, sliding_window=7, query_pre_attn_scalar=16)
        case "gemma3":
            return t.Gemma3TextConfig(**_HEADS, sliding_window=7, query_pre_attn_scalar=16)
        case "gpt2":  # the scale depends on the layer's number in the whole model
            return t.GPT2Config(
                n_embd=48, n_layer=6, n_head=4, vocab_size=VOCAB, n_positions=256, scale_attn_by_inverse_layer_idx=True,
                bos_token_id=0, eos_token_id=1,
            )  # fmt: skip
        case "mixtral":
            return t.MixtralConfig(**_BASE, num_local_experts=4, num_experts_per_tok=2)
        case "qwen3-moe":  # every second layer is dense
            return t.Qwen3MoeConfig(
                **_HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=2
            )
        case "neox":  # attention and MLP side by side
            return t.GPTNeoXConfig(**{k: v for k, v in _BASE.items() if k != "num_key_value_heads"})
        case "phi3":
            return t.Phi3Config(**{**_BASE, "pad_token_id": 0})
        case "olmo2":  # norms behind attention and MLP
            return t.Olmo2Config(**_BASE)
        case "cohere2":  # windows without rotation between full layers with it
            return t.Cohere2Config(**_BASE, sliding_window=7)
    raise ValueError(family)


ALSO = ("neox", "phi3", "olmo2", "cohere2")
"""Families that work without having been aimed at."""

FAMILIES = ("llama", "llama-tied", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt2", "mixtral", "qwen3-moe")


class MemoryCheckpoint:
    """A checkpoint over the weights of a model that is already in memory."""

    def __init__(self, model: Any, name: str = "tiny") -> None:
        self.config = model.config
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        entries = [TensorEntry(k, tuple(v.shape), "F32", v.nbytes, "0" * 64) for k, v in self.weights.items()]
        if getattr(model.config, "tie_word_embeddings", False):
            entries = [e for e in entries if e.name != "lm_head.weight"]
        self.manifest = Manifest(name, model.config.to_dict(), tuple(entries))
        self.bytes_read = 0
        self.names_read: list[str] = []

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        self.names_read.append(name)
        self.bytes_read += self.manifest.entries[name].nbytes
        return self.weights[name].to(dtype, copy=True)

    def export_tensor_bytes(self, name: str, offset: int, length: int) -> bytes:
        return self.weights[name].numpy().tobytes()[offset : offset + length]


def whole_model(config: Any, **named: Any) -> Any:
    """The causal model of a config, with weights as its class sets them; named: what `from_config` takes."""
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM.from_config(config, **named)
    kind: Any = causal_class(type(config))
    return kind._from_config(config, **named)


def random_model(config: Any, seed: int = 0) -> Any:
    """A model whose every weight matters: transformers' own start values give nearly uniform attention."""
    torch.manual_seed(seed)
    model = whole_model(config).eval()
    for name, weight in model.named_parameters():
        noise = torch.randn_like(weight)
        weight.data = weight.data + 0.1 * noise if weight.dim() == 1 or "norm" in name else noise * 0.15
    return model


@dataclass
class Chain:
    """Blocks in a row, each with its own session: a ring without a network."""

    blocks: list[Block]
    pools: list[KVPool]

    def open(self, layout: Layout) -> list[SessionKV]:
        return [pool.open(layout, b.first, b.last) for b, pool in zip(self.blocks, self.pools, strict=True)]

    def run(self, jobs: Sequence[tuple[list[SessionKV], Commits, Rows]]) -> list[torch.Tensor]:
        """One forward through all blocks; every job is (sessions, commits, rows)."""
        for sessions, commits, rows in jobs:
            check_untrusted(rows, commits, sessions[0].layout)
        hidden: list[torch.Tensor | None] = [None] * len(jobs)
        out: list[torch.Tensor] = []
        for i, block in enumerate(self.blocks):
            out = block.forward(
                [Job(s[i], commits, rows, h) for (s, commits, rows), h in zip(jobs, hidden, strict=True)]
            )
            hidden = list(out)
        return out


def chain_of(checkpoint: Any, cuts: Sequence[int]) -> Chain:
    blocks = [load_block(checkpoint, a, b, CPU, torch.float32) for a, b in zip(cuts, cuts[1:], strict=False)]
    return Chain(blocks, [KVPool(block, 1 << 30) for block in blocks])


def certain(tokens: Sequence[int], start: int, layout: Layout, want: bool = True) -> Rows:
    """Committed rows for `tokens` at positions start, start + 1, ..."""
    n = len(tokens)
    position = np.arange(start, start + n)
    return Rows(
        slot=(position + layout.scratch).astype(np.uint32),
        position=position.astype(np.uint32),
        prefix=(position + 1).astype(np.uint32),
        ancestors=np.zeros((n, layout.scratch // 8), np.uint8),
        token=np.array(tokens, np.int32),
        want=np.full(n, want),
    )


def drafted(tokens: Sequence[int], parents: Sequence[int], slots: Sequence[int], prefix: int, layout: Layout) -> Rows:
    """A tree on top of `prefix` committed positions; parents[i] < i, or -1 for a child of the last committed one."""
    n = len(tokens)
    bits = np.zeros((n, layout.scratch), np.uint8)
    depth = np.zeros(n, np.int64)
    for i, parent in enumerate(parents):
        if parent >= 0:
            bits[i] = bits[parent]
            depth[i] = depth[parent] + 1
        bits[i, slots[i]] = 1
    return Rows(
        slot=np.array(slots, np.uint32),
        position=(prefix + depth).astype(np.uint32),
        prefix=np.full(n, prefix, np.uint32),
        ancestors=np.packbits(bits, axis=1, bitorder="little"),
        token=np.array(tokens, np.int32),
        want=np.ones(n, bool),
    )


def path_to(row: int, parents: Sequence[int]) -> list[int]:
    path: list[int] = []
    while row >= 0:
        path.insert(0, row)
        row = parents[row]
    return path


def logits_of(checkpoint: Any, text: Sequence[int], cuts: Sequence[int]) -> torch.Tensor:
    """Logits of every row of a text, computed by blocks that meet at `cuts`, in float32."""
    layout, hidden = Layout(scratch=8, context=64), None
    for first, last in zip(cuts, cuts[1:], strict=False):
        block = load_block(checkpoint, first, last, CPU, torch.float32)
        kv = KVPool(block, 1 << 30).open(layout, first, last)
        (hidden,) = block.forward([Job(kv, no_commits(), certain(text, 0, layout), hidden)])
    assert hidden is not None
    return hidden


def plain(model: Any, text: Sequence[int]) -> torch.Tensor:
    """The same by transformers."""
    with torch.inference_mode():
        return model(torch.tensor([text])).logits[0]  # type: ignore[no-any-return]
