"""A block on two devices gives what the same layers give on one; on this machine both devices are the CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from swarm.base.errors import BusyError
from swarm.model.block import Block, Job, load_block
from swarm.model.kvcache import KVPool
from swarm.model.overflow import SplitBlock, SplitPool
from swarm.model.rows import Commits, Layout, no_commits
from tests.swarm.model.tiny import CPU, MemoryCheckpoint, certain, drafted, random_model, tiny_config

LAYOUT = Layout(scratch=32, context=64)
BESIDE = torch.device("cpu", 0)


@cache
def checkpoint(family: str) -> MemoryCheckpoint:
    return MemoryCheckpoint(random_model(tiny_config(family)))


def split_of(family: str, first: int, cut: int, last: int) -> SplitBlock:
    front = load_block(checkpoint(family), first, cut, CPU, torch.float32)
    return SplitBlock(front, load_block(checkpoint(family), cut, last, BESIDE, torch.float32))


def pool_of(block: SplitBlock, front: int = 1 << 30, back: int = 1 << 30) -> SplitPool:
    return SplitPool(KVPool(block.front, front), KVPool(block.back, back))


def steps(block: Any, pool: Any, first: int, last: int) -> list[torch.Tensor]:
    """A prompt, a tree, a commit of a part of it, and what follows, for two sessions at once."""
    view = block.view(first, last)
    sessions = [pool.open(LAYOUT, first, last) for _ in range(2)]
    tokens = np.random.default_rng(3).integers(0, 64, 40).tolist()
    commits = Commits(np.array([30, 3], np.uint32), np.array([12, 13], np.uint32))
    frames = [
        (no_commits(), certain(tokens[:12], 0, LAYOUT)),
        (no_commits(), drafted(tokens[12:16], [-1, 0, 0, 1], [30, 3, 17, 9], 12, LAYOUT)),
        (commits, drafted(tokens[16:18], [-1, 0], [3, 30], 14, LAYOUT)),
        (no_commits(), certain(tokens[18:22], 14, LAYOUT)),
    ]
    found: list[torch.Tensor] = []
    for which, (commit, rows) in enumerate(frames):
        draw = torch.Generator().manual_seed(which)
        hidden = None if view.head else torch.randn(len(rows), view.hidden_size, generator=draw)
        found += view.forward([Job(kv, commit, rows, hidden) for kv in sessions])
    for kv in sessions:
        kv.close()
    return found


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize(("first", "cut", "last"), [(0, 4, 6), (0, 1, 6), (1, 3, 5), (2, 5, 6)])
def test_two_devices_compute_what_one_does(family: str, first: int, cut: int, last: int) -> None:
    split = split_of(family, first, cut, last)
    whole = load_block(checkpoint(family), first, last, CPU, torch.float32)
    pool = pool_of(split)
    assert (split.head, split.tail, len(split.kv_shapes)) == (whole.head, whole.tail, len(whole.kv_shapes))
    for a, b in ((first, last), (first, cut), (cut, last), (cut - 1, cut + 1)):
        if a < b:
            for found, expected in zip(
                steps(split, pool, a, b), steps(whole, KVPool(whole, 1 << 30), a, b), strict=True
            ):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert pool.used_bytes == 0


def test_a_view_of_one_device_is_an_ordinary_block() -> None:
    split = split_of("llama", 1, 3, 5)
    assert isinstance(split.view(1, 3), Block) and isinstance(split.view(3, 5), Block)
    assert split.view(3, 5).device == BESIDE and isinstance(split.view(2, 4), SplitBlock)
    with pytest.raises(ValueError):
        split.view(0, 4)


def test_a_session_needs_room_on_both_devices_and_takes_none_when_refused() -> None:
    split = split_of("llama", 0, 4, 6)
    each = KVPool(split.front, 0).session_bytes(LAYOUT, 0, 1)
    pool = pool_of(split, front=8 * each, back=2 * each)
    assert pool.session_bytes(LAYOUT, 0, 6) == 6 * each and pool.free_bytes == 6 * each
    first = pool.open(LAYOUT, 0, 6)
    with pytest.raises(BusyError):
        pool.open(LAYOUT, 0, 6)
    assert pool.used_bytes == 6 * each == first.nbytes
    alone = pool.open(LAYOUT, 0, 4)  # the front has room for another
    assert not first.closed
    first.close()
    alone.close()
    assert first.closed and pool.used_bytes == 0 and pool.budget_bytes == 10 * each


def test_blocks_that_do_not_join_are_refused() -> None:
    front = load_block(checkpoint("llama"), 0, 2, CPU, torch.float32)
    with pytest.raises(ValueError, match="do not join"):
        SplitBlock(front, load_block(checkpoint("llama"), 3, 4, CPU, torch.float32))
    with pytest.raises(ValueError, match="do not join"):
        SplitBlock(front, load_block(checkpoint("llama"), 2, 4, CPU, torch.bfloat16))
