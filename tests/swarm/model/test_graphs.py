"""Padded frames over fixed buffers against the eager block; on a GPU also captured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from swarm.base.events import Event, Notice
from swarm.model.block import Block, Job, load_block
from swarm.model.graphs import GraphedBlock, graphed
from swarm.model.kvcache import KVPool
from swarm.model.rows import Commits, Layout, Rows, no_commits
from tests.models.configs import tiny_config as sweep_config
from tests.swarm.model.tiny import CPU, MemoryCheckpoint, certain, drafted, random_model, tiny_config

LAYOUT = Layout(scratch=16, context=600)


SWEPT = ("bloom", "diffllama", "opt")
"""Computes attention itself, asks for it twice a layer, embeds positions."""


def frames(tokens: list[int]) -> list[tuple[Commits, Rows]]:
    """A run: chunks of a prompt, a tree, a commit, single rows over a key bucket's border."""
    parts = [(no_commits(), certain(tokens[a:b], a, LAYOUT)) for a, b in ((0, 100), (100, 140), (140, 250))]
    parts.append((no_commits(), drafted([3, 4, 5, 6, 7], [-1, 0, 0, 2, -1], [15, 2, 9, 0, 7], 250, LAYOUT)))
    commit = Commits(np.array([15, 9], np.uint32), np.array([250, 251], np.uint32))
    parts.append((commit, certain([11], 252, LAYOUT)))
    parts += [(no_commits(), certain([p % 90], p, LAYOUT, want=p != 255)) for p in range(253, 260)]
    return parts


def run(blocks: list[Block], tokens: list[int]) -> list[torch.Tensor]:
    sessions = [KVPool(block, 1 << 30).open(LAYOUT, block.first, block.last) for block in blocks]
    out = []
    for commits, rows in frames(tokens):
        hidden: torch.Tensor | None = None
        for block, kv in zip(blocks, sessions, strict=True):
            (hidden,) = block.forward([Job(kv, commits, rows, hidden)])
        assert hidden is not None
        out.append(hidden)
    return out


def check(device: torch.device, family: str, capture: bool) -> list[Event]:
    config = sweep_config(family) if family in SWEPT else tiny_config(family)
    config.max_position_embeddings = config.n_positions = 600
    checkpoint: Any = MemoryCheckpoint(random_model(config))
    seen: list[Event] = []
    plain = load_block(checkpoint, 0, 6, device, torch.float32)
    fast: Block = GraphedBlock(plain.loaded, device, torch.float32, seen.append, capture=capture)
    tokens = np.random.default_rng(0).integers(0, 97, 300).tolist()
    expected = run([plain], tokens)
    for blocks in ([fast], [fast.view(0, 2), fast.view(2, 6)]):
        for found, right in zip(run(blocks, tokens), expected, strict=True):
            torch.testing.assert_close(found, right, rtol=0, atol=2e-5)
    return seen


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2", "qwen3-moe", *SWEPT])
def test_padded_frames_over_fixed_buffers_equal_the_eager_block(family: str) -> None:
    assert check(CPU, family, capture=False) == []


def test_on_a_cpu_a_block_stays_as_it_is() -> None:
    block = load_block(MemoryCheckpoint(random_model(tiny_config("llama"))), 0, 2, CPU, torch.float32)
    assert graphed(block) is block


def test_a_capture_that_fails_is_told_once_and_costs_nothing_but_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    block = load_block(MemoryCheckpoint(random_model(tiny_config("llama"))), 0, 6, CPU, torch.float32)
    seen: list[Event] = []
    fast = GraphedBlock(block.loaded, CPU, torch.float32, seen.append)

    def refuse(*args: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nlong story")

    monkeypatch.setattr(fast, "_make", refuse)
    tokens = list(range(90)) * 4
    for found, right in zip(run([fast], tokens), run([block], tokens), strict=True):
        assert torch.equal(found, right)
    assert [e.level for e in seen if isinstance(e, Notice)] == ["warning"]
    assert "long story" not in str(seen)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2"])
def test_captured_forwards_equal_the_eager_block(family: str) -> None:
    assert check(torch.device("cuda", 0), family, capture=True) == []
