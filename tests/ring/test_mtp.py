"""Rings whose tail drafts with the model's own head: the same text whatever the head says, in fewer passes if it is
right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from swarm.model.sampler import Sampling
from swarm.ring.frame import Frame
from swarm.run.api import RunRequest
from swarm.run.engine import Drafting
from swarm.stage.mtp_session import MTPSession
from tests.ring.conftest import Drafters, TestRing
from tests.ring.test_ring import generate, prompts
from tests.swarm.model.mtp_models import save_foreseeing, save_with_head

HEADS = ("random", "right", "wrong")
CUTS = [(0, 2), (2, 4), (4, 6)]
made: dict[str, Any] = {}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    places = {head: tmp_path_factory.mktemp(head) for head in HEADS}
    made["random"] = save_with_head("glm4_moe", places["random"])
    for head in ("right", "wrong"):
        made[head] = save_foreseeing(places[head], right=head == "right")
    return places


@pytest.fixture
def head() -> str:
    return "right"


@pytest.fixture
def tiny_folder(folders: dict[str, Path], head: str) -> Path:
    return folders[head]


@pytest.fixture(autouse=True)
def nothing_else_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drafters, "make", lambda self, request: Drafting("none"))


def reference(model: Any, prompt: tuple[int, ...], tokens: int) -> list[int]:
    """What transformers says greedily. (Its `generate` hides padding tokens of a prompt.)"""
    text = list(prompt)
    with torch.inference_mode():
        cache, new = None, text
        for _ in range(tokens):
            out = model(torch.tensor([new]), past_key_values=cache, use_cache=True)
            cache, new = out.past_key_values, [int(out.logits[0, -1].argmax())]
            text += new
    return text[len(prompt) :]


async def run(ring: TestRing, prompt: tuple[int, ...], speculation: Any = "stream", **more: Any) -> Any:
    return await generate(ring, RunRequest(prompt, max_tokens=48, speculation=speculation, draft="auto", **more))


@pytest.mark.parametrize(
    ("head", "speculation"),
    [("random", "stream"), ("right", "chain"), ("right", "tree"), ("right", "stream"), ("wrong", "stream")],
)
async def test_the_text_is_the_models_own(
    make_ring: Callable[..., Any], head: str, speculation: Any, frames_taken: list[tuple[int, Frame]]
) -> None:
    async with make_ring(CUTS) as ring:
        for prompt in prompts(2, seed=4):
            result = await run(ring, prompt, speculation)
            assert list(result.token_ids) == reference(made[head], prompt, 48)
            assert result.drafter == "mtp"
            if head == "right" and speculation != "stream":  # a stream may send before the answer is there
                assert result.tokens_per_pass > 2.5
    assert any(frame.drafts for _, frame in frames_taken)
    assert all(frame.rows.token.min() >= 0 for first, frame in frames_taken if first == 4)  # the tail needs the tokens
    if head == "wrong":  # after a while a head that is never right is asked now and then only
        asked = [frame.drafts > 0 for first, frame in frames_taken if first == 4]
        assert sum(asked[40:]) < 0.5 * len(asked[40:]) and len(asked) > 80


async def test_sampled_text_is_that_of_a_plain_run(make_ring: Callable[..., Any]) -> None:
    """The head ranks with the noise of the drawing, so it is right there too."""
    async with make_ring(CUTS) as ring:
        sampling = Sampling(temperature=0.8, seed=11)
        for prompt in prompts(2, seed=6):
            plain = await run(ring, prompt, "plain", sampling=sampling)
            drafted = await run(ring, prompt, "tree", sampling=sampling)
            assert drafted.token_ids == plain.token_ids and plain.drafter == "none"
            assert drafted.tokens_per_pass > 1.5


async def test_a_head_that_breaks_ends_drafting_alone(
    make_ring: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = MTPSession.follow, 0

    def breaking(self: MTPSession, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise RuntimeError("a head that breaks")
        return whole(self, *given)

    monkeypatch.setattr(MTPSession, "follow", breaking)
    async with make_ring(CUTS) as ring:
        prompt = prompts(1, seed=9)[0]
        assert list((await run(ring, prompt)).token_ids) == reference(made["right"], prompt, 48)
    assert calls == 5


async def test_runs_at_once_and_their_memory(make_ring: Callable[..., Any]) -> None:
    async with make_ring(CUTS) as ring:
        asked = prompts(4, seed=8)
        results = await asyncio.gather(*(run(ring, prompt) for prompt in asked))
        for prompt, result in zip(asked, results, strict=True):
            assert list(result.token_ids) == reference(made["right"], prompt, 48)
        tail = ring.stages[-1].server.hosted
        assert tail.mtp.pool.used_bytes == 0


async def test_nobody_behind_the_head_sees_tokens_of_a_private_run(
    make_ring: Callable[..., Any], frames_taken: list[tuple[int, Frame]]
) -> None:
    async with make_ring(CUTS) as ring:
        prompt = prompts(1, seed=3)[0]
        result = await run(ring, prompt, private=1)
        assert list(result.token_ids) == reference(made["right"], prompt, 48) and result.drafter == "none"
    assert not any(frame.drafts for _, frame in frames_taken)
    assert all(frame.rows.token.max() < 0 for _, frame in frames_taken)


async def test_a_lost_tail_is_replaced(make_ring: Callable[..., Any]) -> None:
    """The newcomer is replayed, tokens and all, and drafts on."""
    async with make_ring([*CUTS, (4, 6)]) as ring:
        prompt = prompts(1, seed=12)[0]
        running = asyncio.create_task(generate(ring, RunRequest(prompt, max_tokens=120, draft="auto")))
        await asyncio.sleep(0.3)
        await ring.stages[2].kill()
        assert list((await running).token_ids) == reference(made["right"], prompt, 120)
