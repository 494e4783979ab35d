from __future__ import annotations

import gc
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
import torch

from swarm.base.errors import BusyError
from swarm.model.gpu import Gpu
from swarm.model.kvcache import SPARE, KVPool, KVShape
from swarm.model.rows import Commits, Layout, no_commits

LAYOUT = Layout(scratch=8, context=24)


@dataclass
class FakeBlock:
    first: int = 2
    last: int = 5
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.bfloat16
    kv_shapes: tuple[KVShape, ...] = (KVShape(2, 4), KVShape(2, 4), KVShape(1, 16))
    gpu: Gpu | None = None


def test_a_pool_counts_sessions_and_refuses_beyond_its_budget() -> None:
    pool = KVPool(FakeBlock(), 9_000)
    one = pool.session_bytes(LAYOUT, 2, 5)
    assert one == (2 * 8 + 2 * 8 + 2 * 16) * (LAYOUT.slots + SPARE) * 2
    first, second = pool.open(LAYOUT, 2, 5), pool.open(LAYOUT, 3, 4)
    assert pool.used_bytes == one + pool.session_bytes(LAYOUT, 3, 4)
    with pytest.raises(BusyError, match=r"a session of 32 slots over layers 2:5 needs .* are free"):
        pool.open(LAYOUT, 2, 5)
    first.close()
    first.close()
    assert first.closed and not second.closed
    assert pool.used_bytes == pool.session_bytes(LAYOUT, 3, 4)
    pool.open(LAYOUT, 2, 5)


def test_layers_that_the_block_does_not_hold() -> None:
    with pytest.raises(ValueError, match="layers 1:3 of a block that holds 2:5"):
        KVPool(FakeBlock(), 1 << 20).open(LAYOUT, 1, 3)


def test_a_commit_copies_slots_of_every_layer() -> None:
    kv = KVPool(FakeBlock(), 1 << 20).open(LAYOUT, 2, 5)
    for layer in range(2, 5):
        for tensor in kv.layer(layer):
            tensor.copy_(torch.arange(LAYOUT.slots + SPARE)[None, :, None].expand_as(tensor))
    kv.commit(Commits(np.array([5, 1], np.uint32), np.array([0, 3], np.uint32)))
    kv.commit(no_commits())
    for layer in range(2, 5):
        for tensor in kv.layer(layer):
            slots = tensor[0, :, 0].tolist()
            assert (slots[8], slots[11]) == (5.0, 1.0)
            assert slots[:8] == list(range(8)) and slots[9:11] == [9.0, 10.0]


def test_slots_start_as_zeros() -> None:
    kv = KVPool(FakeBlock(dtype=torch.float32), 1 << 20).open(LAYOUT, 2, 5)
    assert all(not tensor.any() for layer in range(2, 5) for tensor in kv.layer(layer))


def test_context_that_is_not_used_takes_no_memory_and_closing_gives_it_back() -> None:
    process = psutil.Process()
    shape = (KVShape(8, 128),) * 4
    pool = KVPool(FakeBlock(first=0, last=4, kv_shapes=shape), 1 << 40)
    gc.collect()
    before = process.memory_info().rss
    kv = pool.open(Layout(8, 32_000), 0, 4)
    assert kv.nbytes > 500 << 20
    assert process.memory_info().rss - before < 50 << 20
    kv.layer(0)[0].fill_(1)
    written = process.memory_info().rss
    assert written - before > 60 << 20
    kv.close()
    assert process.memory_info().rss < written - (50 << 20)


def test_keys_and_values_of_two_widths_are_counted_and_committed() -> None:
    pool = KVPool(FakeBlock(first=0, last=2, kv_shapes=(KVShape(2, 6, 4),) * 2, dtype=torch.float32), 1 << 20)
    layout = Layout(scratch=8, context=8)
    kv = pool.open(layout, 0, 2)
    assert pool.used_bytes == 2 * 2 * (6 + 4) * (16 + SPARE) * 4
    for layer in range(2):
        keys, values = kv.layer(layer)
        assert (keys.shape, values.shape) == ((2, 16 + SPARE, 6), (2, 16 + SPARE, 4))
        keys[:, 3], values[:, 3] = 1.0 + layer, 10.0 + layer
    kv.commit(Commits(np.array([3], np.uint32), np.array([5], np.uint32)))
    for layer in range(2):
        keys, values = kv.layer(layer)
        assert (keys[:, 13] == 1.0 + layer).all() and (values[:, 13] == 10.0 + layer).all()
