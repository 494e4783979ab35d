"""A stage that exchanges its block: for one on two devices, for none, never under a run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from swarm.base.errors import BusyError, RunError
from swarm.model.block import load_block
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.model.kvcache import KVPool
from swarm.model.overflow import SplitBlock, SplitPool
from swarm.run.api import CommittedTokens, Finished, RunRequest, RunResult
from swarm.stage.admission import HostedModel
from tests.ring.conftest import TestRing, reference

PROMPT = (1, 2, 3, 4, 5)
CPU, BESIDE = torch.device("cpu"), torch.device("cpu", 0)


def two_devices(before: HostedModel, folder: Path, models: Path, first: int, cut: int, last: int) -> HostedModel:
    checkpoint = open_model(str(folder), ModelStore(models))
    front = load_block(checkpoint, first, cut, CPU, torch.float32)
    back = load_block(checkpoint, cut, last, BESIDE, torch.float32)
    pool = SplitPool(KVPool(front, 1 << 26), KVPool(back, 1 << 26))
    return replace(before, block=SplitBlock(front, back), pool=pool)


async def result_of(ring: TestRing, request: RunRequest) -> RunResult:
    async with aclosing(ring.desk.run(request)) as events:
        return [event async for event in events][-1].result


async def test_a_stage_on_two_devices_answers_as_one(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, tiny_folder: Path, tmp_path: Path
) -> None:
    async with make_ring([(0, 3), (3, 6)], keep_s=30.0) as ring:
        for stage, (first, cut, last) in zip(ring.stages, ((0, 1, 3), (3, 5, 6)), strict=True):
            stage.server.exchange(two_devices(stage.server.hosted, tiny_folder, tmp_path, first, cut, last))
        for speculation in ("plain", "tree", "stream"):
            result = await result_of(ring, RunRequest(PROMPT, 40, speculation=speculation))  # type: ignore[arg-type]
            assert list(result.token_ids) == reference(tiny_model, PROMPT, 40)
        longer = (*PROMPT, *result.token_ids, 7)
        result = await result_of(ring, RunRequest(longer, 20))
        assert result.cached_prompt_tokens > 0  # it began from another run's keys and values, on both devices
        assert list(result.token_ids) == reference(tiny_model, longer, 20)
        for stage in ring.stages:
            stage.server.exchange(None)  # what is kept only for its beginning goes
            assert not stage.server.sessions


async def test_nothing_is_exchanged_under_a_run(make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM) -> None:
    async with make_ring([(0, 6)]) as ring:
        server = ring.stages[0].server
        tokens: list[int] = []
        async with aclosing(ring.desk.run(RunRequest(PROMPT, 60, speculation="plain"))) as events:
            async for event in events:
                if isinstance(event, CommittedTokens):
                    tokens += event.tokens
                    if not isinstance(event, Finished) and len(tokens) < 50:
                        assert server.sessions.busy
                        with pytest.raises(BusyError, match="a run uses the layers"):
                            server.exchange(None)
        assert tokens == reference(tiny_model, PROMPT, 60)
        assert not server.sessions.busy


async def test_a_stage_that_holds_nothing_says_so_and_serves_again(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM
) -> None:
    async with make_ring([(0, 6)]) as ring:
        server = ring.stages[0].server
        before = server.hosted
        server.exchange(None)
        with pytest.raises(RunError, match="loading other layers"):
            await result_of(ring, RunRequest(PROMPT, 4, patience_s=0.3))
        server.exchange(before)
        result = await result_of(ring, RunRequest(PROMPT, 12))
        assert list(result.token_ids) == reference(tiny_model, PROMPT, 12)
