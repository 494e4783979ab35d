"""Blocks against whole transformers models: chunks, trees, commits, several sessions, views."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from swarm.model.block import Job, load_block
from swarm.model.kvcache import KVPool
from swarm.model.rows import Commits, Layout, no_commits
from tests.swarm.model.tiny import (
    ALSO,
    CPU,
    FAMILIES,
    VOCAB,
    MemoryCheckpoint,
    certain,
    chain_of,
    drafted,
    path_to,
    random_model,
    tiny_config,
)

LAYOUT = Layout(scratch=32, context=64)
TOLERANCE = 2e-5


@cache
def whole(family: str) -> Any:
    return random_model(tiny_config(family))


def plain(model: Any, tokens: list[int]) -> torch.Tensor:
    """Logits [n, vocab] of the whole model's plain forward."""
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].float()


def text(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, n).tolist()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("cuts", [(0, 6), (0, 3, 6), (0, 1, 4, 6)], ids=lambda c: f"{len(c) - 1}-stages")
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_tree_commit_and_continuation_equal_the_whole_model(family: str, cuts: tuple[int, ...]) -> None:
    model = whole(family)
    chain = chain_of(MemoryCheckpoint(model), cuts)
    session = chain.open(LAYOUT)
    prompt = text(21, 1)

    # The prompt in three chunks, longer than every sliding window.
    got = [
        chain.run([(session, no_commits(), certain(prompt[a:b], a, LAYOUT))])[0] for a, b in ((0, 9), (9, 20), (20, 21))
    ]
    close(torch.cat(got), plain(model, prompt))

    # A tree in scattered scratch slots.
    tokens, parents, slots = text(7, 2), [-1, 0, 0, 1, 2, -1, 3], [30, 3, 17, 9, 31, 0, 22]
    got = chain.run([(session, no_commits(), drafted(tokens, parents, slots, 21, LAYOUT))])
    for row in range(7):
        path = prompt + [tokens[i] for i in path_to(row, parents)]
        close(got[0][row], plain(model, path)[-1])

    # The path 0, 1, 3 becomes true; its slots are reused at once by a tree that continues it.
    commits = Commits(np.array([30, 3, 9], np.uint32), np.array([21, 22, 23], np.uint32))
    sure = prompt + [tokens[0], tokens[1], tokens[3]]
    more, above = text(3, 3), [-1, 0, 0]
    got = chain.run([(session, commits, drafted(more, above, [30, 17, 9], 24, LAYOUT))])
    for row in range(3):
        close(got[0][row], plain(model, sure + [more[i] for i in path_to(row, above)])[-1])

    # Certain rows go on as if nothing had been drafted.
    rest = text(4, 4)
    got = chain.run([(session, no_commits(), certain(rest, 24, LAYOUT))])
    close(got[0], plain(model, sure + rest)[-4:])


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", *ALSO])
def test_a_long_chunk_equals_the_whole_model(family: str) -> None:
    model = whole(family)
    chain = chain_of(MemoryCheckpoint(model), (0, 2, 6))
    layout = Layout(scratch=8, context=200)
    session, prompt = chain.open(layout), text(170, 9)
    got = [chain.run([(session, no_commits(), certain(prompt[a:b], a, layout))])[0] for a, b in ((0, 70), (70, 170))]
    close(torch.cat(got), plain(model, prompt))


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2", "qwen3-moe"])
def test_two_sessions_share_a_forward(family: str) -> None:
    model = whole(family)
    chain = chain_of(MemoryCheckpoint(model), (0, 2, 6))
    other_layout = Layout(scratch=8, context=40)
    one, two = chain.open(LAYOUT), chain.open(other_layout)
    first, second = text(12, 5), text(17, 6)
    got = chain.run(
        [
            (one, no_commits(), certain(first, 0, LAYOUT)),
            (two, no_commits(), certain(second, 0, other_layout, want=False)),
        ]
    )
    close(got[0], plain(model, first))
    assert got[1].shape == (0, VOCAB)
    tree = drafted([5, 6, 7], [-1, -1, 1], [4, 2, 7], 12, LAYOUT)
    got = chain.run([(two, no_commits(), certain([9], 17, other_layout)), (one, no_commits(), tree)])
    close(got[0][0], plain(model, [*second, 9])[-1])
    close(got[1][0], plain(model, [*first, 5])[-1])
    close(got[1][2], plain(model, [*first, 6, 7])[-1])


def test_frames_of_one_session_share_a_forward_unless_a_commit_needs_the_other() -> None:
    model = whole("mistral")
    chain = chain_of(MemoryCheckpoint(model), (0, 6))
    session = chain.open(LAYOUT)
    prompt = text(10, 7)
    chain.run([(session, no_commits(), certain(prompt, 0, LAYOUT))])
    up = drafted([1, 2], [-1, 0], [0, 1], 10, LAYOUT)
    down = drafted([1, 2, 3, 4], [-1, 0, 1, 1], [0, 1, 2, 3], 10, LAYOUT)
    rest = type(down)(*(getattr(down, f)[2:] for f in ("slot", "position", "prefix", "ancestors", "token", "want")))
    got = chain.run([(session, no_commits(), up), (session, no_commits(), rest)])
    close(got[1][1], plain(model, [*prompt, 1, 2, 4])[-1])
    commit = Commits(np.array([0], np.uint32), np.array([10], np.uint32))
    with pytest.raises(ValueError, match="still writes"):
        chain.run([(session, no_commits(), up), (session, commit, rest)])


def test_rows_without_want_get_no_logits() -> None:
    model = whole("llama")
    chain = chain_of(MemoryCheckpoint(model), (0, 6))
    rows = certain([1, 2, 3, 4], 0, LAYOUT)
    rows.want[:] = [False, True, False, True]
    got = chain.run([(chain.open(LAYOUT), no_commits(), rows)])[0]
    assert got.dtype == torch.float32
    close(got, plain(model, [1, 2, 3, 4])[[1, 3]])


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "gemma3", "qwen3-moe"])
def test_views_compute_like_blocks_of_their_own_and_share_weights(family: str) -> None:
    checkpoint = MemoryCheckpoint(whole(family))
    block = load_block(checkpoint, 0, 6, CPU, torch.float32)
    read = checkpoint.bytes_read
    views = [block.view(0, 2), block.view(2, 3), block.view(3, 6)]
    assert checkpoint.bytes_read == read
    assert [(v.head, v.tail) for v in views] == [(True, False), (False, False), (False, True)]
    prompt = text(11, 8)
    rows = certain(prompt, 0, LAYOUT)
    for order in (views, [block], views):  # cutting must not have changed the block
        hidden = None
        for part in order:
            kv = KVPool(block, 1 << 30).open(LAYOUT, part.first, part.last)
            (hidden,) = part.forward([Job(kv, no_commits(), rows, hidden)])
        assert hidden is not None
        close(hidden, plain(whole(family), prompt))
    assert block.view(0, 6) is block
    inner = block.view(1, 5).view(2, 4)
    assert (inner.first, inner.last, inner.head, inner.tail, inner.n_layers) == (2, 4, False, False, 6)
    with pytest.raises(ValueError, match="holds 1:5"):
        block.view(1, 5).view(0, 2)


def test_a_middle_block_needs_hidden_rows() -> None:
    block = load_block(MemoryCheckpoint(whole("llama")), 2, 4, CPU, torch.float32)
    kv = KVPool(block, 1 << 30).open(LAYOUT, 2, 4)
    with pytest.raises(ValueError, match="hidden"):
        block.forward([Job(kv, no_commits(), certain([1], 0, LAYOUT), None)])


def test_bfloat16_hidden_rows_cross_in_bfloat16() -> None:
    checkpoint = MemoryCheckpoint(whole("llama"))
    block = load_block(checkpoint, 0, 3, CPU, torch.bfloat16)
    kv = KVPool(block, 1 << 30).open(LAYOUT, 0, 3)
    (hidden,) = block.forward([Job(kv, no_commits(), certain([1, 2], 0, LAYOUT), None)])
    assert hidden.dtype == torch.bfloat16
    assert hidden.shape == (2, 48)
    assert kv.layer(0)[0].dtype == torch.bfloat16
