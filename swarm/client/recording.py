"""Runs of a requester that are kept for `swarm draft learn`, where its user asked for that."""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np

from draft.recorded_run import DamagedRun, RecordedRun
from draft.run_shelf import RunShelf
from swarm.run.api import CommittedTokens, Finished, RunEvent, RunRequest, RunResult

log = logging.getLogger(__name__)


def may_be_kept(request: RunRequest) -> bool:
    """Whether a run may lie readably on this machine: not where its text was to be seen by nobody else."""
    return not request.private and not request.private_text


class RunNotes:
    """What is told of one run, until it is over; then it is kept."""

    def __init__(self, shelf: RunShelf, target: str, request: RunRequest) -> None:
        self._shelf, self._target, self._request = shelf, target, request
        self._told: list[tuple[float, tuple[tuple[int, float], ...]]] = []

    async def heard(self, event: RunEvent) -> None:
        """One more event of the run. Never raises for what cannot be kept."""
        if isinstance(event, CommittedTokens):
            self._told += event.logprobs
        elif isinstance(event, Finished) and (run := self._run(event.result)) is not None:
            await asyncio.to_thread(self._shelf.keep, run, time.time())

    def _run(self, result: RunResult) -> RecordedRun | None:
        """None where nothing was said. The first tokens of an answer that the request gave are none of the target's."""
        request, sampling = self._request, self._request.sampling
        given, said = len(request.given), len(result.token_ids)
        if said <= given or len(self._told) != said:
            return None
        told = self._told[given:]
        # What shaped the drawing shaped the likeliest too: they would not be the model's own.
        plain = sampling.constraint is None and sampling.shaping is None and sampling.repetition_penalty == 1.0
        tops = min((len(top) for _, top in told), default=0) if plain else 0
        try:
            return RecordedRun(
                self._target,
                np.array([*result.prompt_token_ids, *result.token_ids], np.int32),
                len(result.prompt_token_ids) + given,
                sampling.greedy,
                np.array([own for own, _ in told], np.float32),
                np.array([[token for token, _ in top[:tops]] for _, top in told], np.int32).reshape(len(told), tops),
                np.array([[value for _, value in top[:tops]] for _, top in told], np.float32).reshape(len(told), tops),
            )
        except DamagedRun as error:
            log.warning("a run is not kept for learning: %s", error)
            return None
