"""A node that is told to leave lets its runs end, or hands them over: nobody loses a token or counts a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from swarm.run import run_loop as drive
from swarm.run.api import CommittedTokens, Finished, Recovering, RunRequest, RunResult
from swarm.stage import server as stage
from tests.ring.conftest import Stage, TestRing, reference

PAIRS = [(0, 2), (2, 4), (4, 6), (0, 2), (2, 4), (4, 6)]
TOKENS = 60


async def leaving(ring: TestRing, node: Stage, request: RunRequest, grace_s: float) -> tuple[RunResult, list[Any]]:
    """Run; tell `node` to leave once a few tokens are there, and close it when it has drained."""
    news: list[Any] = []
    left: asyncio.Task[None] | None = None

    async def leave() -> None:
        await node.server.drain(grace_s)
        assert not node.server.sessions
        await node.kill()

    async with aclosing(ring.desk.run(request)) as events:
        async for event in events:
            if isinstance(event, Recovering):
                news.append(event)
            if isinstance(event, CommittedTokens) and left is None:
                left = asyncio.create_task(leave())
            if isinstance(event, Finished):
                assert left is not None
                await left
                return event.result, news
    raise AssertionError("no result")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No deadline helps: what is not told is never found."""
    monkeypatch.setattr(drive, "LEAST_DEADLINE_S", 10_000.0)
    monkeypatch.setattr(stage, "HAND_OVER_S", 60.0)


@pytest.mark.parametrize("speculation", ["plain", "stream"])
@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.usefixtures("patient")
async def test_a_run_that_does_not_end_in_time_is_handed_over(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, victim: int, speculation: Any
) -> None:
    async with make_ring(PAIRS) as ring, asyncio.timeout(60):
        request = RunRequest((1, 2, 3), max_tokens=TOKENS, speculation=speculation, draft="lm")
        result, news = await leaving(ring, ring.stages[victim], request, 60.0)
        assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), TOKENS)
        assert result.recoveries == 0 and [item.reason for item in news] == ["this node is leaving"]
        assert [item.leaving for item in news] == [True]
        assert ring.stages[victim].plan.node.hex() not in {s.node for s in result.ring}


@pytest.mark.usefixtures("patient")
async def test_a_run_that_ends_in_time_is_let_end(make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM) -> None:
    async with make_ring(PAIRS) as ring, asyncio.timeout(60):
        result, news = await leaving(ring, ring.stages[1], RunRequest((1, 2, 3), max_tokens=TOKENS), 200.0)
        assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), TOKENS)
        assert not news and ring.stages[1].plan.node.hex() in {s.node for s in result.ring}


@pytest.mark.usefixtures("patient")
async def test_where_nobody_can_take_over_the_node_works_as_long_as_it_stays(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM
) -> None:
    async with make_ring([(0, 3), (3, 6)]) as ring, asyncio.timeout(60):
        result, news = await leaving(ring, ring.stages[1], RunRequest((1, 2, 3), max_tokens=TOKENS), 60.0)
        assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), TOKENS)
        assert not news and result.finish_reason == "length"


async def test_a_beginning_that_is_kept_holds_nobody_up(make_ring: Callable[..., Any]) -> None:
    async with make_ring([(0, 3), (3, 6)], keep_s=3600.0) as ring, asyncio.timeout(60):
        async with aclosing(ring.desk.run(RunRequest((1, 2, 3), max_tokens=4))) as events:
            async for _ in events:
                pass
        assert [bool(s.server.sessions) for s in ring.stages] == [True, True]
        await ring.stages[0].server.drain(10_000.0)
        assert not ring.stages[0].server.sessions
