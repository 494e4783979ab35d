"""A requester breaks its run off, and beside it a tail computes on rows that the stage before it never sent.

The edges of an epoch that was broken off are closed by nobody, so no root of both ends says what crossed there. Each
frame of it by itself, without processes: `tests/receipts/check/test_interrupted.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from receipts.check.verdict import Level
from receipts.format.errors import Refusal
from swarm.run.api import RunRequest
from swarm.run.ring_client import Loss, RingLink
from tests.attacks.arena import PROMPT, SPANS, arena


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("lies", [False, True], ids=["honest", "lying"])
async def test_rows_that_nobody_sent(model: Path, tmp_path: Path, lies: bool) -> None:
    async with arena(
        model, tmp_path, SPANS, ["", "", "tests.attacks.lies:hears_one_frame_otherwise" if lies else ""]
    ) as field:

        def seen(link: RingLink, tokens: int) -> None:
            if link.opening.epoch == 0 and tokens >= 10:
                link.losses.append(Loss(0, -1, "a whim"))
                link.wake.set()

        result = await field.run(RunRequest(PROMPT, 16, speculation="plain", ignore_eos=True), seen)
        assert result.recoveries == 1
        verdict = await field.audit(result.receipt, frames=1)
        if lies:
            # Where it goes on from them, what it began from is told first; else that its neighbour opens others.
            assert verdict.refusal is Refusal.AUDIT, verdict.line
            assert "do not give" in verdict.line or "different bytes for frame 6 of epoch 0" in verdict.line
        else:
            assert (verdict.refusal, verdict.level) == (None, Level.SAMPLED), verdict.line
