"""A ring whose stages compute as on a GPU: graphs, pinned buffers, the device's own time, and its faults."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from swarm.base.errors import ModelError
from swarm.model.block import Block
from swarm.model.gpu import Gpu, GraphPool
from swarm.model.graphs import GraphedBlock, Graphs, graphed
from swarm.model.kvcache import KVPool
from swarm.model.sampler import Sampling
from swarm.net.channel.wire import encode_tensor
from swarm.run.api import RunRequest, RunResult
from swarm.stage.compute import UnfitRowsError, narrowed, rows_untrusted
from tests.ring.conftest import Stage, TestRing, reference
from tests.swarm.model.fake_cuda import FakeCuda, FakeEvent

PROMPT = (1, 2, 3, 4, 5)
SPARE = [(0, 3), (3, 6), (0, 3), (3, 6)]


def onto(stage: Stage, cuda: FakeCuda) -> None:
    """Let a stage compute by CUDA's rules."""
    hosted = stage.server.hosted
    assert hosted is not None and isinstance(hosted.block, Block)
    block = GraphedBlock(hosted.block, Graphs(GraphPool(Gpu(torch.device("cuda", 1), cuda))))
    stage.server.exchange(replace(hosted, block=block, pool=KVPool(block, 64 << 20)))


class Broken:
    """The owner of a stage, who is told when its device is lost."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def lose_device(self, why: str) -> None:
        self.said.append(why)


async def result_of(ring: TestRing, request: RunRequest) -> RunResult:
    async with aclosing(ring.desk.run(request)) as events:
        return [event async for event in events][-1].result


async def test_a_ring_over_graphs_says_what_the_model_says(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM
) -> None:
    devices = [FakeCuda(home=1), FakeCuda(home=1)]
    async with make_ring([(0, 3), (3, 6)], keep_s=30.0, exact=False) as ring:
        for stage, cuda in zip(ring.stages, devices, strict=True):
            cuda.tick_ms = 1.5
            onto(stage, cuda)
        for speculation in ("plain", "tree"):
            result = await result_of(ring, RunRequest(PROMPT, 40, speculation=speculation))  # type: ignore[arg-type]
            assert list(result.token_ids) == reference(tiny_model, PROMPT, 40)
        longer = (*PROMPT, *result.token_ids, 7)
        result = await result_of(ring, RunRequest(longer, 12))
        assert result.cached_prompt_tokens > 0  # copied when the session took its memory
        assert list(result.token_ids) == reference(tiny_model, longer, 12)
        assert all(cuda.replays > 20 for cuda in devices)
        # Two stages: what their events say, not how long it took to tell the devices what to do.
        assert result.parts_ms["compute"] == pytest.approx(3.0)


async def test_what_a_device_says_late_fails_one_run(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory, told where the rows are read."""
    cuda, failed, whole = FakeCuda(home=1), list[int](), FakeEvent.synchronize

    def once(self: FakeEvent) -> None:
        if not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        whole(self)

    monkeypatch.setattr(FakeEvent, "synchronize", once)
    async with make_ring(SPARE, exact=False) as ring:
        broken = Broken()
        onto(ring.stages[0], cuda)
        ring.stages[0].server._owner = broken
        for _ in range(2):
            result = await result_of(ring, RunRequest(PROMPT, 12))
            assert list(result.token_ids) == reference(tiny_model, PROMPT, 12)
        assert failed and not broken.said and not ring.stages[0].server.draining


async def test_a_lost_device_ends_its_node_and_no_run(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM
) -> None:
    cuda = FakeCuda(home=1)
    async with make_ring(SPARE, exact=False) as ring:
        broken = Broken()
        onto(ring.stages[0], cuda)
        ring.stages[0].server._owner = broken
        result = await result_of(ring, RunRequest(PROMPT, 8))
        assert result.recoveries == 0
        cuda.fault = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nlong story")
        result = await result_of(ring, RunRequest(PROMPT, 12))
        assert list(result.token_ids) == reference(tiny_model, PROMPT, 12)
        assert (
            len(broken.said) == 1 and "illegal memory access" in broken.said[0] and "long story" not in broken.said[0]
        )
        assert ring.stages[0].server.draining  # and takes no run any more


async def test_a_device_without_graphs_and_float64_says_what_the_model_says(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM
) -> None:
    """As Apple's: rows go to it and come back, logits are drawn from on the host."""
    async with make_ring([(0, 3), (3, 6)], exact=False) as ring:
        for stage in ring.stages:
            cuda = FakeCuda(home=1)
            cuda.has_graphs = cuda.has_float64 = False
            hosted = stage.server.hosted
            block = hosted.block.view(hosted.block.first, hosted.block.last)
            block.gpu = Gpu(torch.device("cuda", 1), cuda)
            assert graphed(block) is block
            stage.server.exchange(replace(hosted, block=block, pool=KVPool(block, 64 << 20)))
        request = RunRequest(PROMPT, 16, sampling=Sampling(temperature=0.8, top_p=0.9, seed=3))
        drawn = (await result_of(ring, request)).token_ids
        result = await result_of(ring, RunRequest(PROMPT, 16))
        assert list(result.token_ids) == reference(tiny_model, PROMPT, 16)
    async with make_ring([(0, 6)], exact=False) as ring:
        assert (await result_of(ring, request)).token_ids == drawn


async def test_a_ring_in_float16_says_what_the_model_says(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM
) -> None:
    async with make_ring([(0, 3), (3, 6)], dtype=torch.float16, exact=False) as ring:
        assert ring.stages[0].server.hosted.block.computes_in == "float16"
        result = await result_of(ring, RunRequest(PROMPT, 12))
        assert list(result.token_ids) == reference(tiny_model, PROMPT, 12)


def test_rows_that_float16_does_not_hold_are_nobodys_fault_but_this_nodes() -> None:
    rows = torch.tensor([[1.0, 70_000.0]])
    header, data = encode_tensor(rows, "bfloat16")
    assert rows_untrusted(header, data, (1, 2), torch.bfloat16).isfinite().all()
    with pytest.raises(ModelError, match="beyond float16, in which this node computes; use --dtype float32"):
        narrowed(rows_untrusted(header, data, (1, 2), torch.float16), torch.float16)
    header, data = encode_tensor(torch.tensor([[1.0, float("inf")]]), "bfloat16")
    for dtype in (torch.float16, torch.float32):
        with pytest.raises(UnfitRowsError):
            rows_untrusted(header, data, (1, 2), dtype)
    header, data = encode_tensor(torch.tensor([[0.1, -3.0]]).half(), "float16")
    found = narrowed(rows_untrusted(header, data, (1, 2), torch.float16), torch.float16)
    assert found.dtype == torch.float16 and found.tolist() == torch.tensor([[0.1, -3.0]]).half().tolist()
