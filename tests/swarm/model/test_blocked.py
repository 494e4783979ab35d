"""Blocked linear layers compute what plain ones do, for any number of rows, and keep memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from swarm.model.block import load_block
from swarm.model.blocked import SHARED_BYTES, BlockedLinear, block_linears, can_block
from tests.swarm.model.tiny import MemoryCheckpoint, random_model, tiny_config

CPU = torch.device("cpu")
DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if can_block(CPU, dtype)]
pytestmark = pytest.mark.skipif(not DTYPES, reason="this torch has no such kernels")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_a_blocked_layer_is_the_layer(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(1)
    plain = nn.Linear(96, 80, bias=bias, dtype=dtype)
    blocked = BlockedLinear(plain)
    near = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1.6e-2, "atol": 1e-2}
    for rows in (1, 2, 7, 8, 33, 300):
        x = torch.randn(1, rows, 96, dtype=dtype)
        torch.testing.assert_close(blocked(x), plain(x), **near)
    spread = torch.randn(1, 5, 192, dtype=dtype)[..., ::2]
    torch.testing.assert_close(blocked(spread), plain(spread), **near)
    assert torch.equal(blocked.weight, plain.weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_made_in_inference_mode_computes(dtype: torch.dtype) -> None:
    with torch.inference_mode():
        blocked = BlockedLinear(nn.Linear(64, 64, dtype=dtype))
    assert blocked(torch.ones(1, 3, 64, dtype=dtype)).shape == (1, 3, 64)


def test_a_shared_head_is_copied_only_while_small() -> None:
    class Tied(nn.Module):
        def __init__(self, words: int) -> None:
            super().__init__()
            self.embedding = nn.Embedding(words, 64, device="meta" if words > 1000 else "cpu")
            self.head = nn.Linear(64, words, bias=False, device="meta")
            self.head.weight = self.embedding.weight

    small, large = Tied(100), Tied(SHARED_BYTES // 256 + 1)
    block_linears(small.requires_grad_(False))
    block_linears(large.requires_grad_(False))
    assert isinstance(small.head, BlockedLinear) and isinstance(large.head, nn.Linear)
    assert torch.equal(small.head.weight, small.embedding.weight)


def test_blocks_are_blocked_unless_told() -> None:
    checkpoint = MemoryCheckpoint(random_model(tiny_config("llama")))
    for blocked in (True, False):
        block = load_block(checkpoint, 0, 2, CPU, torch.float32, blocked=blocked, exact=False)
        kinds = {type(m) for m in block.loaded.model.modules() if isinstance(m, nn.Linear | BlockedLinear)}
        assert kinds == {BlockedLinear if blocked else nn.Linear}


def test_a_gpu_keeps_plain_layers() -> None:
    assert not can_block(torch.device("cuda"), torch.float32) and not can_block(CPU, torch.float16)
