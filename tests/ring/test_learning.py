"""Runs of a real ring kept for learning: with the option alone, never private ones; and the drafter that learned from
them drafts for runs whose tokens stay those of plain runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import swarm
from draft.recorded_run import RecordedRun
from draft.run_shelf import FOLDER, RunShelf
from swarm.base.config import MemberConfig
from swarm.base.events import Event, Notice
from swarm.client.client import Requester, RequesterConfig
from swarm.model.sampling import Sampling
from swarm.model.shaping import Shaping
from swarm.run.api import Finished, RunRequest, RunResult
from tests.draft.learning import Tiny, make_tiny

PROMPTS = [(0, 40 + n, 60 + n % 3, 9) for n in range(20)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def ring(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two nodes inside this process; the invite."""
    state = tmp_path_factory.mktemp("nodes")
    options: dict[str, Any] = {"model": str(tiny.folder), "lan": False, "threads": 1, "dtype": "float32"}
    options["grace_s"] = 1.0
    with (
        swarm.Node(state=state / "a", layers=(0, 2), found=True, **options) as first,
        swarm.Node(first.invite, state=state / "b", layers=(2, 3), **options),
    ):
        yield first.invite


async def said(requester: Requester, request: RunRequest) -> RunResult:
    async with aclosing(requester.run(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return event.result
    raise AssertionError("the run had no end")


def config(ring: str, state: Path, **more: Any) -> RequesterConfig:
    return RequesterConfig(MemberConfig(state, state / "models", ring, lan=False, punch=False), **more)


def asked(prompt: tuple[int, ...], tokens: int = 24, **more: Any) -> RunRequest:
    return RunRequest(prompt, max_tokens=tokens, ignore_eos=True, receipt=False, **more)


def shelf(state: Path) -> RunShelf:
    return RunShelf(state / FOLDER)


def kept(state: Path, tiny: Tiny) -> list[RecordedRun]:
    return shelf(state).load(tiny.target.manifest.digest, lambda event: None)


async def test_a_run_is_kept_as_it_was_said(ring: str, tiny: Tiny, tmp_path: Path) -> None:
    async with await Requester.connect(config(ring, tmp_path, keep_for_learning=True, draft="suffix")) as requester:
        plain = await said(requester, asked(PROMPTS[0], 9, sampling=Sampling(logprobs=4)))
        drawn = await said(requester, asked(PROMPTS[1], 7, sampling=Sampling(temperature=1.0, seed=3)))
        held = replace(Sampling(logprobs=4), shaping=Shaping(given=(50, 51)))
        given = await said(requester, asked(PROMPTS[2], 8, sampling=held))
    first, second, third = kept(tmp_path, tiny)
    assert first.tokens.tolist() == [*PROMPTS[0], *plain.token_ids] and (first.start, first.greedy) == (4, True)
    (alone,) = tiny.runs([PROMPTS[0]], 9, 4)
    assert first.top_ids.tolist() == alone.top_ids.tolist() and abs(first.logprobs - alone.logprobs).max() < 1e-3
    assert abs(first.top_logprobs - alone.top_logprobs).max() < 1e-3
    assert second.tokens.tolist() == [*PROMPTS[1], *drawn.token_ids] and not second.greedy and second.tops == 0
    assert third.start == 6 and third.tokens[4:6].tolist() == [50, 51] and third.tops == 0
    assert third.tokens.tolist() == [*PROMPTS[2], *given.token_ids]


async def test_nothing_is_kept_unasked_nor_of_private_runs(ring: str, tiny: Tiny, tmp_path: Path) -> None:
    async with await Requester.connect(config(ring, tmp_path / "a", draft="suffix")) as requester:
        await said(requester, asked(PROMPTS[0], 5))
    assert not (tmp_path / "a" / FOLDER).exists()
    async with await Requester.connect(config(ring, tmp_path / "b", draft="suffix", keep_for_learning=True)) as asker:
        await said(asker, asked(PROMPTS[0], 5, private=1))
        await said(asker, asked(PROMPTS[0], 5, private_text=True))
        assert not kept(tmp_path / "b", tiny)
        await said(asker, asked(PROMPTS[0], 5))
    assert len(kept(tmp_path / "b", tiny)) == 1


async def test_one_that_cannot_be_kept_is_answered_all_the_same(ring: str, tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file where the folder should be")
    async with await Requester.connect(config(ring, tmp_path, draft="suffix", keep_for_learning=True)) as requester:
        assert (await said(requester, asked(PROMPTS[0], 5))).new_tokens == 5


async def test_what_learned_from_runs_drafts_and_their_tokens_stay(ring: str, tiny: Tiny, tmp_path: Path) -> None:
    async with await Requester.connect(config(ring, tmp_path, keep_for_learning=True)) as requester:
        assert "it lies beside the model" in requester.drafts
        for prompt in PROMPTS:
            await said(requester, asked(prompt))
    lesson = tiny.learner(shelf(tmp_path), []).learn()
    assert lesson.why_not is None and lesson.after.first > lesson.before.first + 0.1
    fresh = [(0, 80 + n, 61, 9) for n in range(4)]
    async with await Requester.connect(config(ring, tmp_path)) as requester:
        assert requester.drafts.startswith("your own drafter drafts: learned from 16 runs")
        rows = 0
        for speculation in ("chain", "tree", "stream"):
            for sampling in (Sampling(), Sampling(temperature=0.8, seed=7)):
                for prompt in fresh:
                    drafted = await said(requester, asked(prompt, sampling=sampling, speculation=speculation))
                    plain = await said(requester, asked(prompt, sampling=sampling, speculation="plain"))
                    assert drafted.token_ids == plain.token_ids
                    rows += drafted.drafted_rows
        assert rows > 0
    shelf(tmp_path).forget(tiny.target.manifest.digest)
    async with await Requester.connect(config(ring, tmp_path)) as requester:
        assert "it lies beside the model" in requester.drafts


async def test_a_damaged_one_is_named_and_the_one_before_drafts(ring: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = shelf(tmp_path).of(tiny.target.manifest.digest)
    folder.mkdir(parents=True)
    (folder / "current").write_text("../../elsewhere")
    told: list[Event] = []
    async with await Requester.connect(config(ring, tmp_path), told.append) as requester:
        assert "it lies beside the model" in requester.drafts
    said = [event.text for event in told if isinstance(event, Notice)]
    assert any(f"not drafting with {folder}" in text and "--forget" in text for text in said)
