"""A drafter that fails costs its drafts, and is named in the log with what it failed of."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from draft.base import DraftStep, Expansion
from swarm.model.rows import Layout
from swarm.model.sampler import Sampling
from swarm.planner.costs import Costs
from swarm.run.api import RunRequest
from swarm.run.controller import Controller
from swarm.run.draft_steps import DraftSteps
from swarm.run.planned_frame import StopRule
from swarm.run.speculation import Speculation


class Failing:
    name = "failing"

    def __init__(self, in_begin: bool) -> None:
        self._in_begin = in_begin

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> None:
        if self._in_begin:
            raise RuntimeError("no room for its keys")

    def step(self, step: DraftStep) -> list[Expansion]:
        raise RuntimeError("a row without a parent")


@pytest.mark.parametrize(("in_begin", "why"), [(True, "no room for its keys"), (False, "a row without a parent")])
async def test_a_failure_is_logged_once_and_the_run_goes_on(
    caplog: pytest.LogCaptureFixture, in_begin: bool, why: str
) -> None:
    control = Controller(Costs(pass_ms=100.0, row_ms=1.0))
    core = Speculation([1, 2, 3], Layout(64, 128), StopRule(8), control, deferred=True)
    wake = asyncio.Event()
    with ThreadPoolExecutor(1) as thread, caplog.at_level(logging.ERROR):
        steps = DraftSteps(core, Failing(in_begin), thread, RunRequest((1, 2, 3)), wake)
        for _ in range(4):
            steps.go_on()
            await steps.settle()
            await asyncio.sleep(0)
    assert wake.is_set() and core.draft_work(0.0) is None
    (record,) = caplog.records
    assert "failing" in record.getMessage() and record.exc_info is not None and why in str(record.exc_info[1])
    assert core.next_frame(0.0) is not None
