"""One text computed in many ways: by whom, in which parts, in which slots, beside whom. What the tests of exact rows
share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from swarm.model.block import Block, Job, load_block
from swarm.model.kvcache import KVPool, SessionKV
from swarm.model.quant.formats import _HALVES, Format, blocks_format
from swarm.model.quant.matrix import PackedMatrix, hold
from swarm.model.quant.native import library
from swarm.model.rows import Commits, Layout, Rows, check_untrusted, no_commits
from tests.swarm.model.tiny import CPU, VOCAB, MemoryCheckpoint, certain, random_model

_TYPES = gguf.GGMLQuantizationType
LAYOUT = Layout(scratch=32, context=200)
LAYERS = 3
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LARGER = {**SIZES, "hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
"""For formats in blocks of 256."""


def config_of(family: str) -> Any:
    t = transformers
    match family:
        case "llama":
            return t.LlamaConfig(**SIZES)
        case "llama-large":
            return t.LlamaConfig(**LARGER)
        case "qwen2":  # biases, and a window in the last layers
            return t.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=37, max_window_layers=1)
        case "gemma3":
            return t.Gemma3TextConfig(**SIZES, sliding_window=37, query_pre_attn_scalar=16)
        case "gpt2":
            return t.GPT2Config(n_embd=64, n_layer=LAYERS, n_head=4, vocab_size=VOCAB, n_positions=256)
        case "mixtral":
            return t.MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
        case "gpt-oss":  # attention sinks, experts with biases
            return t.GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=37)
    raise ValueError(family)


class PackedCheckpoint(MemoryCheckpoint):
    """A checkpoint whose matrices are stored in a format of blocks, of GGUF or ours."""

    def __init__(self, model: Any, form: str) -> None:
        super().__init__(model)
        self._form = form

    def read_rows(self, name: str, rows: torch.Tensor, dtype: torch.dtype) -> None:
        return None

    def hold(self, name: str, without_kernel: bool) -> Any:
        form, weight = blocks_format(self._form), self.weights[name].float().numpy()
        assert form is not None
        if weight.ndim != 2 or weight.shape[1] % form.block:
            return None
        known = self._form in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
        stored = gguf.quantize(weight, _TYPES[self._form]) if known else random_blocks(form, weight.shape)
        matrix = hold(stored, form, weight.shape, None, name, library())
        assert isinstance(matrix, PackedMatrix) or without_kernel
        return matrix

    def hold_stack(self, name: str, without_kernel: bool) -> None:
        """Experts stay expanded here: `test_experts` has them as stored."""


def random_blocks(form: Format, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Blocks of codes that mean something, with scales of a weight's usual size: `gguf` packs no K format."""
    source = np.random.default_rng(7)
    blocks = source.integers(0, 256, (shape[0] * shape[1] // form.block, form.block_bytes), np.uint8)
    form.settle_scales(blocks)
    for at in _HALVES.get(form.name, ()):
        scales = source.uniform(0.5e-4, 1.5e-4, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(shape[0], -1)


KINDS = ("float32", "bfloat16", "Q8_0", "Q4_0")
"""How a stage may compute: plain numbers, or a stored format with rows of bfloat16."""


def block_of(family: str, kind: str) -> Block:
    return loaded(random_model(config_of(family)), kind)


def loaded(model: Any, kind: str, weights: str = "auto") -> Block:
    """All layers of a model, computed as `kind` says; weights: of `load_block`, where that is a stored format."""
    checkpoint = MemoryCheckpoint(model) if kind in ("float32", "bfloat16") else PackedCheckpoint(model, kind)
    layers = checkpoint.manifest.n_layers
    if kind in ("float32", "bfloat16"):
        return load_block(checkpoint, 0, layers, CPU, getattr(torch, kind))
    return load_block(checkpoint, 0, layers, CPU, torch.bfloat16, weights=weights)


def places_to_cut(block: Block) -> list[int]:
    return [cut for cut in range(1, block.last) if cut not in block.ties.forbidden]


@dataclass
class Session:
    """One text on its way through views of one block that meet at `cuts`. rows[i]: by position, what view i gave."""

    parts: list[Block]
    kvs: list[SessionKV]

    @classmethod
    def open(cls, block: Block, cuts: Sequence[int]) -> Session:
        ends = [0, *cuts, block.last]
        parts = [block.view(a, b) for a, b in zip(ends, ends[1:], strict=False)]
        return cls(parts, [KVPool(part, 1 << 40).open(LAYOUT, part.first, part.last) for part in parts])


def forward(sessions: Sequence[Session], rows: Sequence[Rows], commits: Sequence[Commits]) -> list[list[torch.Tensor]]:
    """One forward of several sessions with the same cuts: per session what each part gave."""
    for one, commit in zip(rows, commits, strict=True):
        check_untrusted(one, commit, LAYOUT)
    hidden: list[torch.Tensor | None] = [None] * len(sessions)
    found: list[list[torch.Tensor]] = [[] for _ in sessions]
    for i, part in enumerate(sessions[0].parts):
        jobs = [Job(s.kvs[i], c, r, h) for s, c, r, h in zip(sessions, commits, rows, hidden, strict=True)]
        hidden = list(part.forward(jobs))
        for own, given in zip(found, hidden, strict=True):
            assert given is not None
            own.append(given)
    return found


def reference(block: Block, text: Sequence[int]) -> dict[int, torch.Tensor]:
    """Rows by the layer that they left, for every position: the text at once, alone, layer by layer, one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        session = Session.open(block, places_to_cut(block))
        (found,) = forward([session], [certain(text, 0, LAYOUT)], [no_commits()])
    finally:
        torch.set_num_threads(before)
    return {part.last: rows for part, rows in zip(session.parts, found, strict=True)}


def ends(session: Session) -> list[int]:
    """The layer that each part ends with."""
    return [part.last for part in session.parts]


def random_text(seed: int, length: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(2, VOCAB, length)]
