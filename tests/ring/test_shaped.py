"""Penalties by count, biases, a least length and given beginnings: the same answer in every way to run, by hand too."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from receipts.check.verdict import Level, Standing
from receipts.check.verify import verify
from receipts.format.errors import Refusal
from swarm.base.errors import RunError
from swarm.model.block import Block, load_block
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.rows import Layout, no_commits
from swarm.model.sampler import Sampling, pick
from swarm.model.shaping import Shaping
from swarm.recheck.recompute import Step, run_block
from swarm.ring.certain_rows import certain_rows
from swarm.run.api import CommittedTokens, RunRequest

from .signed import signed_ring
from .test_signed import PROMPT, SPANS, audited, replaying, wide

__all__ = ["wide"]

MODES = ("plain", "chain", "tree", "stream")
COUNTED = Shaping(presence=0.7, frequency=1.1, bias=((3, 4.0), (9, -100.0), (41, 2.5)))
SAMPLINGS = {
    "greedy": Sampling(shaping=COUNTED),
    "sampled": Sampling(temperature=0.8, seed=6, top_p=0.95, repetition_penalty=1.2, shaping=COUNTED),
}
BLOCKS: dict[Checkpoint, Block] = {}


def logits_after(checkpoint: Checkpoint, tokens: Sequence[int]) -> torch.Tensor:
    """After each token, on one machine."""
    if checkpoint not in BLOCKS:
        BLOCKS[checkpoint] = load_block(checkpoint, 0, 8, torch.device("cpu"), torch.float32)
    layout = Layout(0, len(tokens))
    rows = certain_rows(layout, 0, tokens)
    rows.want[:] = True
    (logits,) = run_block(BLOCKS[checkpoint], layout, [Step(no_commits(), rows)])
    return logits


def alone(checkpoint: Checkpoint, sampling: Sampling, most: int, ends: frozenset[int] = frozenset()) -> list[int]:
    """The answer as the definition of the fields gives it: every logit changed by hand."""
    shaping, tokens = sampling.shaping, list(PROMPT)
    assert shaping is not None
    while len(tokens) < len(PROMPT) + most:
        (logits,) = logits_after(checkpoint, tokens)[-1:]
        row = logits.tolist()
        for token in set(tokens) if sampling.repetition_penalty != 1 else ():
            row[token] = (
                row[token] / sampling.repetition_penalty if row[token] > 0 else row[token] * sampling.repetition_penalty
            )
        for token, count in Counter(tokens[len(PROMPT) :]).items():
            row[token] -= shaping.presence + shaping.frequency * count
        for token, added in shaping.bias:
            row[token] += added
        if len(tokens) - len(PROMPT) < shaping.least:
            for token in ends:
                row[token] = -torch.inf
        plain = replace(sampling, repetition_penalty=1.0, shaping=None)
        tokens.append(pick(torch.tensor([row]), [len(tokens)], plain)[0].token)
        if tokens[-1] in ends:
            break
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("name", SAMPLINGS)
async def test_every_way_to_run_says_the_same(wide: Checkpoint, tmp_path: Path, name: str) -> None:
    sampling = SAMPLINGS[name]
    expected = alone(wide, sampling, 40)
    free = alone(wide, replace(sampling, shaping=Shaping()), 40)
    assert expected != free and 9 not in expected and len(set(expected)) > len(set(free))
    async with signed_ring(wide, SPANS, tmp_path) as ring:
        for mode in MODES:
            result = await ring.generate(RunRequest(PROMPT, 40, sampling, speculation=mode))  # type: ignore[arg-type]
            assert list(result.token_ids) == expected, mode
        private = await ring.generate(RunRequest(PROMPT, 40, sampling, private=1))
        assert list(private.token_ids) == expected


@pytest.mark.parametrize("mode", ["plain", "stream"])
async def test_a_receipt_says_so_and_is_replayed_and_audited(wide: Checkpoint, tmp_path: Path, mode: Any) -> None:
    async with signed_ring(wide, SPANS, tmp_path) as ring:
        result = await ring.generate(RunRequest(PROMPT, 24, SAMPLINGS["sampled"], speculation=mode))
        path = Path(str(result.receipt))
        verdict = verify(path.read_bytes())
        assert verdict.exit_code == 0 and verdict.standing_of("shaping") is Standing.CLAIMED, verdict.line
        assert "presence penalty 0.7, frequency penalty 1.1, 3 biased tokens" in str(verdict.claims)
        checked = await audited(ring, path, wide)
        assert (checked.exit_code, checked.level) == (0, Level.SAMPLED), checked.line
        replayed = await asyncio.to_thread(verify, path.read_bytes(), replaying(path, wide))
        assert (replayed.exit_code, replayed.level) == (0, Level.REPLAYED), replayed.line


async def test_a_lost_stage_changes_nothing(wide: Checkpoint, tmp_path: Path) -> None:
    expected = alone(wide, SAMPLINGS["greedy"], 30)
    async with signed_ring(wide, [*SPANS, SPANS[1]], tmp_path) as ring:
        request = RunRequest(PROMPT, 30, SAMPLINGS["greedy"], speculation="stream")
        result = await ring.generate(request, drop_after=8)
        assert result.recoveries == 1 and list(result.token_ids) == expected


async def test_a_tail_that_leaves_it_out_is_caught(
    wide: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It signs the order and draws as if there were no penalties."""
    async with signed_ring(wide, SPANS, tmp_path) as ring:
        with monkeypatch.context() as patch:
            patch.setattr("swarm.model.sampler.shifted", lambda logits, *_: logits)
            result = await ring.generate(RunRequest(PROMPT, 40, SAMPLINGS["greedy"], speculation="plain"))
        path = Path(str(result.receipt))
        replayed = await asyncio.to_thread(verify, path.read_bytes(), replaying(path, wide))
        assert replayed.refusal is Refusal.REPLAY, replayed.line
        assert (await audited(ring, path, wide)).refusal is Refusal.AUDIT


async def test_an_answer_is_as_long_as_it_must_be(wide: Checkpoint, tmp_path: Path) -> None:
    first = alone(wide, Sampling(shaping=Shaping()), 1)[0]
    ends = frozenset({first})
    sampling = Sampling(shaping=Shaping(least=6))
    expected = alone(wide, sampling, 30, ends)
    assert len(expected) > 6 and first not in expected[:6]
    async with signed_ring(wide, SPANS, tmp_path, eos=ends) as ring:
        short = await ring.generate(RunRequest(PROMPT, 30))
        assert short.token_ids == (first,)
        for mode in MODES:
            result = await ring.generate(RunRequest(PROMPT, 30, sampling, speculation=mode))  # type: ignore[arg-type]
            assert list(result.token_ids) == expected, mode
        path = Path(str(result.receipt))
        assert "no end before 6 tokens" in str(verify(path.read_bytes()).claims)
        replayed = await asyncio.to_thread(verify, path.read_bytes(), replaying(path, wide))
        assert (replayed.exit_code, replayed.level) == (0, Level.REPLAYED), replayed.line


@pytest.mark.parametrize("mode", MODES)
async def test_given_tokens_are_told_as_likely_as_the_model_has_them(
    wide: Checkpoint, tmp_path: Path, mode: Any
) -> None:
    """How a text is scored: all but its first token are given, in a few passes, ends of texts among them."""
    text = [*PROMPT, 7, 300, 12, 12, 5] * 4
    found = logits_after(wide, text).log_softmax(-1)
    sampling = Sampling(logprobs=2, shaping=Shaping(given=tuple(text[1:])))
    async with signed_ring(wide, SPANS, tmp_path, eos=frozenset({300})) as ring:
        request = RunRequest((text[0],), len(text) + 2, sampling, speculation=mode, draft="none")
        events = [event async for event in ring.desk.run(request) if isinstance(event, CommittedTokens)]
        tokens = [token for event in events for token in event.tokens]
        logprobs = [told for event in events for told in event.logprobs]
        drawn = tokens[len(text) - 1 :]
        assert tokens[: len(text) - 1] == text[1:] and len(drawn) == 3 and drawn[0] == int(found[-1].argmax())
        for place, (own, top) in enumerate(logprobs[: len(text) - 1]):
            assert own == pytest.approx(float(found[place, text[place + 1]]), abs=2e-4), place
            assert [token for token, _ in top] == found[place].topk(2).indices.tolist()
        only = await ring.generate(replace(request, max_tokens=len(text) - 1))
        assert (only.finish_reason, only.new_tokens, only.text) == ("length", len(text) - 1, only.text)
        assert only.passes <= 3
        path = Path(str(only.receipt))
        assert "given by the requester, not drawn" in str(verify(path.read_bytes()).claims)
        assert (await audited(ring, path, wide)).exit_code == 0
        replayed = await asyncio.to_thread(verify, path.read_bytes(), replaying(path, wide))
        assert (replayed.exit_code, replayed.level) == (0, Level.REPLAYED), replayed.line


async def test_a_tail_that_flatters_a_given_text_is_caught(
    wide: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities of given tokens are audited like those of drawn ones."""
    sampling = Sampling(logprobs=1, shaping=Shaping(given=tuple(PROMPT[1:] * 6)))
    async with signed_ring(wide, SPANS, tmp_path) as ring:
        honest = pick

        def flattering(*given: Any, **more: Any) -> Any:
            return [replace(picked, logprob=picked.logprob / 2) for picked in honest(*given, **more)]

        with monkeypatch.context() as patch:
            patch.setattr("swarm.ring.drawing.pick", flattering)
            request = RunRequest(PROMPT[:1], len(PROMPT[1:] * 6), sampling, speculation="plain")
            result = await ring.generate(request)
        assert (await audited(ring, Path(str(result.receipt)), wide)).refusal is Refusal.AUDIT


async def test_an_order_of_another_shaping_is_not_accepted(
    wide: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with signed_ring(wide, SPANS, tmp_path) as ring:
        monkeypatch.setattr("swarm.run.receipt.shaped_of", lambda sampling: None)
        with pytest.raises(RunError, match="differs from the ring in its shaping"):
            await ring.generate(RunRequest(PROMPT, 4, SAMPLINGS["greedy"], patience_s=0.2))
