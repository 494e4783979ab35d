"""A ring whose stages compute as on a GPU: graphs, pinned buffers, the device's own time, and its faults."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from swarm.model.block import Block
from swarm.model.gpu import Gpu, GraphPool
from swarm.model.graphs import GraphedBlock, Graphs
from swarm.model.kvcache import KVPool
from swarm.run.api import RunRequest, RunResult
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
