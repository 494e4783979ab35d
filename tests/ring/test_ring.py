"""One ring in one process: exact output, isolation, fairness, freed memory."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from draft.lm import LmDrafter
from draft.window import TextWindow
from swarm.base.errors import UsageError
from swarm.model.sampler import Sampling
from swarm.ring.frame import Frame
from swarm.ring.opening import RingSignal
from swarm.run.api import CommittedTokens, Finished, RingOpened, RunRequest, RunResult
from swarm.run.controller import Controller
from swarm.run.ring_client import RingLink
from swarm.stage import batcher as pump
from swarm.stage.compute import compute
from tests.ring.conftest import VOCAB, TestRing, reference


def prompts(count: int, seed: int) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 40))) for _ in range(count)]


async def generate(ring: TestRing, request: RunRequest) -> RunResult:
    result: RunResult | None = None
    seen: list[int] = []
    async with aclosing(ring.desk.run(request)) as events:
        async for event in events:
            if isinstance(event, CommittedTokens):
                seen += event.tokens
            if isinstance(event, Finished):
                result = event.result
    assert result is not None
    assert tuple(seen) == result.token_ids
    return result


async def test_a_drafter_that_reads_a_window_of_a_long_text(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads 24 tokens of 90, moves on several times while 80 more are made, and the text is the model's."""
    fills, whole = list[int](), LmDrafter._read

    def reading(self: LmDrafter) -> None:
        whole(self)
        fills.append(self._text.place_of(self._text.root) + 1)

    monkeypatch.setattr(LmDrafter, "_read", reading)
    monkeypatch.setattr(Controller, "worth_asking", lambda self, calibration, roots, now: True)
    monkeypatch.setattr(Controller, "worth_step", lambda self, gain: True)
    async with make_ring(CUTS[2]) as ring:
        ring.desk._drafting.window = TextWindow(24, 4, 56)
        prompt = tuple(random.Random(8).randrange(VOCAB) for _ in range(90))
        result = await generate(ring, RunRequest(prompt, max_tokens=80, speculation="stream", draft="lm"))
    assert list(result.token_ids) == reference(tiny_model, prompt, 80)
    assert len(fills) >= 3 and set(fills) == {24} and sum(result.depth_sent)


CUTS = {
    1: [(0, 6)],
    2: [(0, 3), (3, 6)],
    3: [(0, 2), (2, 4), (4, 6)],
    5: [(0, 1), (1, 2), (2, 3), (3, 5), (5, 6)],
}


@pytest.mark.parametrize("stages", CUTS)
@pytest.mark.parametrize("speculation", ["plain", "chain", "tree", "stream"])
async def test_greedy_output_is_that_of_transformers(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, stages: int, speculation: Any
) -> None:
    asked = prompts(20 if speculation in ("plain", "chain") else 6, seed=stages)
    async with make_ring(CUTS[stages]) as ring:
        requests = (RunRequest(prompt, max_tokens=64, speculation=speculation) for prompt in asked)
        results = await asyncio.gather(*(generate(ring, request) for request in requests))
        for prompt, result in zip(asked, results, strict=True):
            assert list(result.token_ids) == reference(tiny_model, prompt, 64)
            assert result.new_tokens == 64 and result.finish_reason == "length"
            assert [s.layers for s in result.ring] == CUTS[stages]


@pytest.mark.parametrize("speculation", ["chain", "tree", "stream"])
@pytest.mark.parametrize("bad", [False, True])
async def test_a_model_drafter_changes_nothing_but_the_speed(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, speculation: Any, bad: bool
) -> None:
    sent = accepted = 0
    async with make_ring(CUTS[3], bad_drafter=bad) as ring:
        for prompt in prompts(4, seed=21):
            result = await generate(ring, RunRequest(prompt, max_tokens=64, speculation=speculation, draft="lm"))
            assert list(result.token_ids) == reference(tiny_model, prompt, 64)
            sent, accepted = sent + sum(result.depth_sent), accepted + sum(result.depth_accepted)
    if bad:  # a ring soon sends none of its rows, and one in fifty is right by chance: over all runs, and one is free
        assert accepted < max(2, sent / 2)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.5])
async def test_speculation_changes_no_sampled_token(make_ring: Callable[..., Any], temperature: float) -> None:
    async with make_ring(CUTS[3]) as ring:
        for seed in range(10):
            sampling = Sampling(temperature=temperature, top_p=0.95, top_k=40, repetition_penalty=1.1, seed=seed)
            requests = (
                RunRequest((1, 2, 3, 1, 2, 3), max_tokens=24, sampling=sampling, speculation=mode, draft="lm")
                for mode in ("plain", "chain", "tree", "stream")
            )
            results = await asyncio.gather(*(generate(ring, request) for request in requests))
            assert len({result.token_ids for result in results}) == 1


async def test_a_long_prompt_goes_in_chunks(make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM) -> None:
    prompt = tuple(random.Random(3).randrange(VOCAB) for _ in range(460))
    async with make_ring([(0, 3), (3, 6)]) as ring:
        result = await generate(ring, RunRequest(prompt, max_tokens=8))
        assert list(result.token_ids) == reference(tiny_model, prompt, 8)


async def test_requesters_at_once_are_exact_and_memory_returns(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM
) -> None:
    async with make_ring([(0, 2), (2, 6)]) as ring:
        asked = prompts(6, seed=5)
        results = await asyncio.gather(*(generate(ring, RunRequest(p, max_tokens=16)) for p in asked))
        for prompt, result in zip(asked, results, strict=True):
            assert list(result.token_ids) == reference(tiny_model, prompt, 16)
        for stage in ring.stages:
            assert not stage.server.sessions
            assert stage.server.hosted.pool.used_bytes == 0


async def test_a_reader_that_leaves_frees_the_ring(make_ring: Callable[..., Any]) -> None:
    async with make_ring([(0, 3), (3, 6)]) as ring:
        async with aclosing(ring.desk.run(RunRequest((1, 2, 3), max_tokens=400))) as events:
            async for event in events:
                if isinstance(event, CommittedTokens):
                    break
        assert [stage.server.hosted.pool.used_bytes for stage in ring.stages] == [0, 0]
        assert not ring.desk.links


async def test_the_opening_tells_the_ring(make_ring: Callable[..., Any]) -> None:
    async with make_ring([(0, 3), (3, 6)]) as ring:
        async with aclosing(ring.desk.run(RunRequest((1, 2, 3), max_tokens=4))) as events:
            opened = [event async for event in events if isinstance(event, RingOpened)]
        assert [s.layers for s in opened[0].ring] == [(0, 3), (3, 6)]


async def test_the_opening_comes_before_the_answer_though_its_news_travels_longer(
    make_ring: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames do not wait for the ring to stand, so the first answer may be home before the word that it does."""
    answered = asyncio.Event()
    take_answer, take_word = RingLink.take_answer, RingLink.take_word

    def answer(link: RingLink, *parts: Any) -> None:
        take_answer(link, *parts)
        answered.set()

    def word(link: RingLink, news: RingSignal) -> None:
        later = asyncio.get_running_loop().create_task(answered.wait())
        later.add_done_callback(lambda _: take_word(link, news))
        held.append(later)

    held: list[asyncio.Task[Any]] = []
    monkeypatch.setattr(RingLink, "take_answer", answer)
    monkeypatch.setattr(RingLink, "take_word", word)
    async with make_ring(CUTS[2]) as ring, aclosing(ring.desk.run(RunRequest((1, 2, 3), max_tokens=8))) as events:
        seen = [event async for event in events]
    assert [type(event) for event in seen].count(RingOpened) == 1
    assert isinstance(seen[0], RingOpened) and [stage.layers for stage in seen[0].ring] == CUTS[2]
    assert [stage.device for stage in seen[-1].result.ring] == ["cpu", "cpu"]


async def test_a_prompt_over_the_context_is_refused(make_ring: Callable[..., Any]) -> None:
    async with make_ring([(0, 6)]) as ring:
        with pytest.raises(UsageError, match="600 tokens"):
            await generate(ring, RunRequest(tuple([1] * 600), max_tokens=4))


@pytest.mark.parametrize("speculation", ["plain", "chain", "stream"])
async def test_a_private_run_answers_the_same_and_shows_no_token(
    make_ring: Callable[..., Any],
    tiny_model: LlamaForCausalLM,
    speculation: Any,
    frames_taken: list[tuple[int, Frame]],
) -> None:
    async with make_ring([(0, 3), (3, 6)]) as ring:
        for prompt in prompts(2, seed=8):
            request = RunRequest(prompt, max_tokens=24, speculation=speculation, private=1)
            result = await generate(ring, request)
            assert list(result.token_ids) == reference(tiny_model, prompt, 24)
            assert [s.layers for s in result.ring] == [(1, 3), (3, 5)]
    assert {int(token) for _, frame in frames_taken for token in frame.rows.token} == {-1}


async def test_the_loop_turns_while_a_stage_computes(
    make_ring: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No forward goes on before the event loop has turned once: were it computed in the loop, it never would."""
    loop = asyncio.get_running_loop()
    turns: list[bool] = []

    def held(batch: Any) -> Any:
        turned = threading.Event()
        loop.call_soon_threadsafe(turned.set)
        turns.append(turned.wait(10))
        return compute(batch)

    monkeypatch.setattr(pump, "compute", held)
    async with make_ring([(0, 3), (3, 6)]) as ring:
        await generate(ring, RunRequest((1, 2, 3), max_tokens=8))
    assert turns and all(turns)


async def test_a_stop_string_ends_the_run(make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM) -> None:
    prompt = (5, 6, 7)
    whole = reference(tiny_model, prompt, 32)
    stop = f" {whole[4]} "
    async with make_ring([(0, 3), (3, 6)]) as ring:
        result = await generate(ring, RunRequest(prompt, max_tokens=32, stop=(stop,)))
        assert result.finish_reason == "stop"
        assert stop not in result.text
        assert whole[: len(result.token_ids)] == list(result.token_ids)
