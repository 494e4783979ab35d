"""Receipts of runs whose ring changed in ways that are seldom: a node left out comes back, a ring never quite stood."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from receipts.check.verify import verify
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.ring.opening import RingSignal
from swarm.run.api import CommittedTokens, Finished, RunRequest, RunResult
from swarm.run.ring_client import RingLink
from tests.ring.conftest import reference
from tests.ring.signed import SignedRing, signed_ring

SPANS = [(0, 2), (2, 4), (4, 6), (2, 4)]
REQUEST = RunRequest((1, 2, 3), max_tokens=40, speculation="plain")


async def run(ring: SignedRing, seen: Callable[[RingLink, int], None]) -> RunResult:
    """One run; `seen` is told its link and the number of tokens with each commit."""
    tokens = 0
    async with aclosing(ring.desk.run(REQUEST)) as events:
        async for event in events:
            if isinstance(event, CommittedTokens):
                tokens += len(event.tokens)
                seen(next(iter(ring.desk.links.values())), tokens)
            if isinstance(event, Finished):
                return event.result
    raise AssertionError("no result")


def lose(link: RingLink, stage: int) -> None:
    link.take_word(RingSignal("lost", link.opening.run, link.opening.epoch, stage=stage, reason="a test says so"))


async def test_a_node_that_was_left_out_and_came_back(
    tiny_folder: Path, tiny_model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint: Any = open_model(str(tiny_folder), ModelStore(tmp_path / "models"))
    async with signed_ring(checkpoint, SPANS, tmp_path) as ring:
        plans = [node.plan for node in ring.nodes]
        routes = [[plans[0], plans[middle], plans[2]] for middle in (1, 3, 1)]
        monkeypatch.setattr(
            ring.desk.router, "plan", lambda excluded, private=0: routes.pop(0) if routes[1:] else routes[0]
        )
        lost: list[int] = []

        def seen(link: RingLink, tokens: int) -> None:
            if tokens > 10 * (len(lost) + 1) and len(lost) < 2 and link.said:
                lost.append(tokens)
                lose(link, 1)

        result = await run(ring, seen)
        assert list(result.token_ids) == reference(tiny_model, REQUEST.prompt_ids, REQUEST.max_tokens)
        assert result.recoveries == 2
        verdict = verify(Path(str(result.receipt)).read_bytes())
        assert verdict.exit_code == 0, verdict.line
        back = ring.nodes[1].server
        assert back is not None and not back.sessions


async def test_a_ring_that_broke_before_it_stood(
    tiny_folder: Path, tiny_model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage had accepted and begun, but the news never came home."""
    whole_word, whole_answer = RingLink.take_word, RingLink.take_answer

    def word(self: RingLink, word: RingSignal) -> None:
        if word.do == "opened" and word.epoch == 0:
            lose(self, 1)
        else:
            whole_word(self, word)

    def answer(self: RingLink, answer: Any, message: Any) -> None:
        if answer.epoch:
            whole_answer(self, answer, message)

    monkeypatch.setattr(RingLink, "take_word", word)
    monkeypatch.setattr(RingLink, "take_answer", answer)
    checkpoint: Any = open_model(str(tiny_folder), ModelStore(tmp_path / "models"))
    async with signed_ring(checkpoint, SPANS, tmp_path) as ring:
        result = await run(ring, lambda link, tokens: None)
        assert list(result.token_ids) == reference(tiny_model, REQUEST.prompt_ids, REQUEST.max_tokens)
        assert result.recoveries == 1
        verdict = verify(Path(str(result.receipt)).read_bytes())
        assert verdict.exit_code == 0, verdict.line


async def test_a_ring_that_drew_tokens_and_never_was_heard_to_stand(
    tiny_folder: Path, tiny_model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers come straight home, the news that the ring stands by every stage; one was lost in between."""
    whole_word, whole_answer, answered = RingLink.take_word, RingLink.take_answer, [0]

    def word(self: RingLink, word: RingSignal) -> None:
        if word.do != "opened" or word.epoch:
            whole_word(self, word)

    def answer(self: RingLink, answer: Any, message: Any) -> None:
        whole_answer(self, answer, message)
        answered[0] += answer.epoch == 0
        if answer.epoch == 0 and answered[0] == 4:
            lose(self, 1)

    monkeypatch.setattr(RingLink, "take_word", word)
    monkeypatch.setattr(RingLink, "take_answer", answer)
    checkpoint: Any = open_model(str(tiny_folder), ModelStore(tmp_path / "models"))
    async with signed_ring(checkpoint, SPANS, tmp_path) as ring:
        result = await run(ring, lambda link, tokens: None)
        assert list(result.token_ids) == reference(tiny_model, REQUEST.prompt_ids, REQUEST.max_tokens)
        assert result.recoveries == 1
        verdict = verify(Path(str(result.receipt)).read_bytes())
        assert verdict.exit_code == 0 and verdict.run is not None, verdict.line
        assert verdict.run.epochs[1].first_position > len(REQUEST.prompt_ids) and verdict.run.epochs[0].accepts
