"""A stage is lost in the middle of a run: the run goes on, and its output is that of an undisturbed one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from swarm.base.errors import RunError
from swarm.model.block import Block
from swarm.model.sampler import Sampling
from swarm.ring.frame import Frame
from swarm.ring.opening import RingSignal
from swarm.run import ring_client as link
from swarm.run import run_loop as drive
from swarm.run.api import CommittedTokens, Finished, Recovering, RunRequest, RunResult
from swarm.stage.admission import StageLimits
from swarm.stage.server import StageServer
from tests.ring.conftest import VOCAB, TestRing, reference

SPARE = [(0, 2), (2, 4), (4, 6), (0, 2), (2, 4), (4, 6)]


async def disturbed(ring: TestRing, request: RunRequest, victims: list[int], after: int) -> tuple[RunResult, list[Any]]:
    """Run, and kill the stages `victims` once `after` tokens are there."""
    news: list[Any] = []
    seen = 0
    async with aclosing(ring.desk.run(request)) as events:
        async for event in events:
            if isinstance(event, Recovering):
                news.append(event)
            if isinstance(event, CommittedTokens):
                seen += len(event.tokens)
                if seen >= after and all(ring.stages[v].alive for v in victims):
                    for victim in victims:
                        await ring.stages[victim].kill()
            if isinstance(event, Finished):
                return event.result, news
    raise AssertionError("no result")


@pytest.mark.parametrize("speculation", ["plain", "chain", "tree", "stream"])
@pytest.mark.parametrize("victims", [[0], [1], [2], [1, 2]])
async def test_output_is_that_of_an_undisturbed_run(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, speculation: Any, victims: list[int]
) -> None:
    rng = random.Random(len(victims) * 7 + victims[0])
    prompt = tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 150)))
    async with make_ring(SPARE) as ring:
        request = RunRequest(prompt, max_tokens=40, speculation=speculation)
        result, news = await disturbed(ring, request, victims, rng.randint(1, 30))
        assert list(result.token_ids) == reference(tiny_model, prompt, 40)
        assert result.recoveries >= 1 and news
        lost = {ring.stages[v].plan.node.hex() for v in victims}
        assert not lost & {s.node for s in result.ring}


@pytest.mark.parametrize("victim", [0, 2])
async def test_a_lost_neighbour_of_the_requester_needs_no_deadline(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, victim: int
) -> None:
    monkeypatch.setattr(drive, "LEAST_DEADLINE_S", 10_000.0)
    monkeypatch.setattr(drive, "KEEP_EVERY_S", 10_000.0)
    async with make_ring(SPARE) as ring, asyncio.timeout(60):
        result, _ = await disturbed(ring, RunRequest((1, 2, 3), max_tokens=30), [victim], 5)
    assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), 30)


async def test_a_head_that_dies_while_the_ring_forms_again_needs_no_deadline(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "OPEN_TIMEOUT_S", 10_000.0)
    monkeypatch.setattr(drive, "LEAST_DEADLINE_S", 10_000.0)
    whole = StageServer._open
    async with make_ring([*SPARE, (0, 2)]) as ring, asyncio.timeout(60):

        def dying(self: StageServer, peer: Any, header: Any) -> None:
            if self is ring.stages[3].server:
                peer.drop("killed")
            else:
                whole(self, peer, header)

        monkeypatch.setattr(StageServer, "_open", dying)
        result, _ = await disturbed(ring, RunRequest((1, 2, 3), max_tokens=30), [0], 5)
    assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), 30)


async def test_late_news_of_the_ring_that_was_lost_harms_nobody_in_the_new_one(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between the choice of another route and its opening, and names a place that a newcomer has now."""
    whole = link.RingLink.turn_to

    def late(self: link.RingLink, opening: Any) -> None:
        word = RingSignal("lost", opening.run, opening.epoch - 1, stage=1, reason="late")
        if opening.epoch:
            self.take_word(word)
        whole(self, opening)
        if opening.epoch:
            self.take_word(word)

    monkeypatch.setattr(link.RingLink, "turn_to", late)
    async with make_ring(SPARE) as ring:
        result, news = await disturbed(ring, RunRequest((1, 2, 3), max_tokens=30), [1], 5)
        assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), 30)
        assert result.recoveries == 1 and [item.reason for item in news if item.reason == "late"] == []


async def test_without_a_replacement_the_run_ends_with_what_it_has(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM
) -> None:
    async with make_ring([(0, 3), (3, 6)]) as ring:
        request = RunRequest((1, 2, 3), max_tokens=400, patience_s=0.5)
        result, _ = await disturbed(ring, request, [1], 5)
        assert result.finish_reason == "swarm_incomplete"
        assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), len(result.token_ids))
        assert 5 <= len(result.token_ids) < 400


async def test_a_requester_that_dies_leaves_nothing_behind(make_ring: Callable[..., Any]) -> None:
    async with make_ring([(0, 3), (3, 6)], limits=StageLimits(lease_s=0.5)) as ring:
        async with aclosing(ring.desk.run(RunRequest((1, 2, 3), max_tokens=400))) as events:
            async for event in events:
                if isinstance(event, CommittedTokens):
                    break
            for peer in ring.board.peers():
                peer.drop("killed")
            for stage in ring.stages:
                await stage.server.drain(20)
                assert not stage.server.sessions
        assert [stage.server.hosted.pool.used_bytes for stage in ring.stages] == [0, 0]


async def _trial(make_ring: Callable[..., Any], model: LlamaForCausalLM, seed: int) -> None:
    rng = random.Random(seed)
    prompt = tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 200)))
    mode: Any = rng.choice(["plain", "chain", "tree", "stream"])
    async with make_ring(SPARE) as ring:
        request = RunRequest(prompt, max_tokens=48, speculation=mode, draft=rng.choice(["suffix", "lm"]))
        result, _ = await disturbed(ring, request, [rng.randrange(3)], rng.randint(1, 40))
        assert list(result.token_ids) == reference(model, prompt, 48), (seed, mode)


@pytest.mark.parametrize("seed", range(8))
async def test_a_few_random_losses(make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, seed: int) -> None:
    await _trial(make_ring, tiny_model, seed)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_two_hundred_random_losses(make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM) -> None:
    for seed in range(100, 300):
        await _trial(make_ring, tiny_model, seed)


async def test_a_full_stage_says_busy_at_once(make_ring: Callable[..., Any]) -> None:
    async with make_ring([(0, 3), (3, 6)], kv_bytes=1000) as ring:
        request = RunRequest((1, 2, 3), max_tokens=40, patience_s=0.2)
        async with asyncio.timeout(8):
            with pytest.raises(RunError, match="try later"):
                async with aclosing(ring.desk.run(request)) as events:
                    async for _ in events:
                        pass


async def test_a_new_tail_knows_what_was_said(make_ring: Callable[..., Any]) -> None:
    """A repetition penalty looks at tokens that the lost tail had seen."""
    sampling = Sampling(temperature=0.8, seed=3, repetition_penalty=1.6)
    request = RunRequest((1, 2, 3, 4, 5), max_tokens=40, sampling=sampling)
    async with make_ring(SPARE) as ring:
        result, _ = await disturbed(ring, request, [2], 15)
    async with make_ring(SPARE) as ring:
        undisturbed, _ = await disturbed(ring, request, [], 10**6)
    assert result.recoveries >= 1 and result.token_ids == undisturbed.token_ids


async def test_only_the_head_sees_token_ids(
    make_ring: Callable[..., Any], frames_taken: list[tuple[int, Frame]]
) -> None:
    async with make_ring([(0, 3), (3, 6)]) as ring:
        await disturbed(ring, RunRequest((1, 2, 3), max_tokens=8), [], 10**6)
    seen = {first: {int(t) for f, frame in frames_taken if f == first for t in frame.rows.token} for first in (0, 3)}
    assert seen[3] == {-1} and -1 not in seen[0]


async def test_a_full_stage_is_left_out(make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM) -> None:
    async with make_ring(SPARE, full=[0, 1]) as ring:
        result, _ = await disturbed(ring, RunRequest((1, 2, 3), max_tokens=30), [], 10**6)
        assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), 30)
        assert {s.node for s in result.ring}.isdisjoint(ring.stages[i].plan.node.hex() for i in (0, 1))


async def test_a_full_stage_is_no_replacement(make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM) -> None:
    async with make_ring([*SPARE, (2, 4)], full=[4]) as ring:
        result, _ = await disturbed(ring, RunRequest((1, 2, 3), max_tokens=30), [1], 5)
        assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), 30)
        assert ring.stages[6].plan.node.hex() in {s.node for s in result.ring}


async def test_a_stage_that_cannot_compute_is_left_out_and_lives(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is out of memory, say: the run goes elsewhere, and the node serves the next one."""
    whole, failed = Block.forward, []
    async with make_ring(SPARE) as ring:

        def forward(self: Block, jobs: Any) -> Any:
            if self.first == 2 and len(failed) < 1 and jobs[0].rows.position[0] > 5:
                failed.append(self)
                raise torch.OutOfMemoryError("CUDA out of memory")
            return whole(self, jobs)

        monkeypatch.setattr(Block, "forward", forward)
        result, news = await disturbed(ring, RunRequest((1, 2, 3), max_tokens=30), [], 10**6)
        assert list(result.token_ids) == reference(tiny_model, (1, 2, 3), 30)
        assert failed and len(news) == 1 and "out of memory" in news[0].reason
        again, _ = await disturbed(ring, RunRequest((1, 2, 3), max_tokens=30), [], 10**6)
        assert again.token_ids == result.token_ids and again.recoveries == 0
        assert ring.stages[1].plan.node.hex() in {s.node for s in again.ring}
