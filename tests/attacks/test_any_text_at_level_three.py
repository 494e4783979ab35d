"""Have honest stages compute on other text than the receipt publishes, and call it audited.

Each way of steering gives the tail's own tokens under everybody's honest signatures; only the text before them is
another than the one shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from receipts.check.verdict import Level
from receipts.format.errors import Refusal
from swarm.model.rows import Commits
from swarm.model.sampler import Sampling
from swarm.ring.frame import Frame
from swarm.ring.receipt_log import head_bytes
from swarm.run.api import RunRequest
from swarm.run.receipt import RunAccount
from swarm.run.ring_client import Loss, RingLink
from swarm.run.speculation import Speculation
from tests.attacks.arena import OTHER, PROMPT, Arena, arena

Change = Callable[[Frame], list[Frame]]


def other_prompt(frame: Frame) -> list[Frame]:
    """Committed rows of the prompt carry other tokens."""
    return [_swapped(frame, lambda rows: rows.position < len(PROMPT))]


class Drafted:
    """Later rows stand in scratch slots under other tokens, and the next frame commits them as if they were drafts."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, int]] = []

    def last(self, core: Speculation) -> Commits:
        """What the closing commits."""
        return Commits(*(np.asarray(column, np.uint32) for column in zip(*self._pending, strict=True)))

    def __call__(self, frame: Frame) -> list[Frame]:
        rows = frame.rows
        commits = [np.asarray(column, np.uint32) for column in zip(*self._pending, strict=True)]
        if commits:
            frame = replace(frame, commits=Commits(*commits))
        self._pending = []
        if len(rows) > 1 or int(rows.position[0]) < len(PROMPT):
            return [frame]
        position = int(rows.position[0])
        slot = position % 2
        ancestors = np.zeros_like(rows.ancestors)
        ancestors[0, 0] = 1 << slot
        self._pending = [(slot, position)]
        drafted = replace(
            rows, slot=np.full(1, slot, np.uint32), prefix=np.full(1, position, np.uint32), ancestors=ancestors,
            token=np.full(1, OTHER[position % len(OTHER)], np.int32),
        )  # fmt: skip
        return [replace(frame, rows=drafted)]


def written_over(frame: Frame) -> list[Frame]:
    """The prompt is computed on other text; then the right text is written over all of it but the last row."""
    rows = frame.rows
    if int(rows.position.max()) >= len(PROMPT) or len(rows) < 2:
        return [frame]
    keep = slice(0, len(rows) - 1)
    over = replace(rows, **{name: getattr(rows, name)[keep] for name in _ARRAYS}, want=np.zeros(len(rows) - 1, bool))
    return [_swapped(frame, lambda rows: rows.position < len(PROMPT) - 1), replace(frame, rows=over)]


_ARRAYS = ("slot", "position", "prefix", "ancestors", "token")


def _swapped(frame: Frame, where: Callable[[Any], Any]) -> Frame:
    rows = frame.rows
    token = np.where(where(rows), np.asarray([OTHER[p % len(OTHER)] for p in rows.position], np.int32), rows.token)
    return replace(frame, rows=replace(rows, token=token.astype(np.int32)))


def steer(monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """Every frame of this process leaves as `change` makes it, numbered without a gap, as stages want it; the answer to
    its first part is taken for the answer to the whole."""
    give, take = RingLink._give, RingLink.take_answer
    left: dict[tuple[int, int], list[int | None]] = {}

    async def changed(self: RingLink, frame: Frame) -> None:
        numbers = left.setdefault((id(self), frame.epoch), [])
        for index, part in enumerate(change(frame)):
            numbers.append(None if index else frame.seq)
            await give(self, replace(part, seq=len(numbers) - 1))

    def taken(self: RingLink, answer: Any, message: Any) -> None:
        number = left[(id(self), answer.epoch)][answer.seq]
        if number is not None:
            take(self, replace(answer, seq=number), message)
        elif self.account is not None:
            self.account.received(answer.seq, message)

    def received(self: Any, seq: int, message: Any) -> None:
        self.record.inbound.frame(int(message.header["q"]), head_bytes(message), message.body)

    monkeypatch.setattr(RunAccount, "received", received)
    monkeypatch.setattr(RingLink, "_give", changed)
    monkeypatch.setattr(RingLink, "take_answer", taken)


SAMPLED = Sampling(temperature=0.8, min_p=0.02, seed=5)
WAYS: list[tuple[Change, str, Sampling]] = [
    (other_prompt, "plain", Sampling()),
    (other_prompt, "stream", SAMPLED),
    (Drafted(), "stream", Sampling()),
    (written_over, "plain", SAMPLED),
]


async def test_steered_by_rows(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with arena(model, tmp_path) as field:
        honest = await field.run(RunRequest(PROMPT, 12, SAMPLED, speculation="stream"))
        verdict = await field.audit(honest.receipt)
        assert (verdict.exit_code, verdict.level) == (0, Level.SAMPLED), verdict.line
        hidden = await field.audit(honest.receipt, secrets=())
        assert (hidden.exit_code, hidden.level) == (4, Level.SIGNED) and "not disclosed" in hidden.line, hidden.line
        for change, speculation, sampling in WAYS:
            with monkeypatch.context() as patch:
                steer(patch, change)
                if isinstance(change, Drafted):
                    patch.setattr(Speculation, "closing_commits", lambda core, drafted=change: drafted.last(core))
                request = RunRequest(PROMPT, 12, sampling, speculation=speculation, draft="none")  # type: ignore[arg-type]
                await _refused(field, request, str(change))


async def _refused(field: Arena, request: RunRequest, name: str) -> None:
    result = await field.run(request)
    verdict = await field.audit(result.receipt)
    assert verdict.refusal is Refusal.AUDIT and "another context" in verdict.line, (name, verdict.line)
    assert verdict.level is not None and verdict.level < Level.SAMPLED


async def test_steered_by_another_beginning(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages copy what they hold of a run over other text; nothing wrong is ever sent in the run itself."""
    async with arena(model, tmp_path, keep_s=60.0) as field:
        before = await field.run(RunRequest((*OTHER, 3), 4, speculation="plain"))
        run = bytes.fromhex(before.run_id)
        with monkeypatch.context() as patch:
            patch.setattr(field.requester.desk._prefixes, "best", lambda *about: (run, len(PROMPT) - 1))
            await _refused(field, RunRequest(PROMPT, 12, speculation="plain"), "base")
        # A true beginning is none.
        true = await field.run(RunRequest(PROMPT, 16, speculation="plain"))
        again = await field.run(RunRequest((*PROMPT, *true.token_ids, 5), 8, speculation="stream"))
        assert again.cached_prompt_tokens
        verdict = await field.audit(again.receipt)
        assert (verdict.exit_code, verdict.level) == (0, Level.SAMPLED), verdict.line


async def test_steered_in_an_earlier_epoch(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first epoch fills keys and values from other text and draws nothing that is kept; the second begins there."""

    async with arena(model, tmp_path) as field:

        def seen(link: RingLink, tokens: int) -> None:
            if link.opening.epoch == 0:
                link.losses.append(Loss(0, -1, "a whim"))
                link.wake.set()

        with monkeypatch.context() as patch:
            steer(patch, lambda frame: other_prompt(frame) if frame.epoch == 0 else [frame])
            result = await field.run(RunRequest(PROMPT, 12, speculation="plain"), seen)
            assert result.recoveries == 1
        verdict = await field.audit(result.receipt)
        assert verdict.refusal is Refusal.AUDIT or verdict.exit_code == 4, verdict.line
        assert verdict.level is not None and verdict.level < Level.SAMPLED
