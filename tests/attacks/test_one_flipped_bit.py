"""Compute with the right model but for one bit of one weight."""

from __future__ import annotations

from pathlib import Path

import pytest

from receipts.check.verdict import Level
from receipts.format.errors import Refusal
from swarm.run.api import RunRequest
from tests.attacks.arena import PROMPT, arena
from tests.attacks.exactness import ALL, within_limits_only

LIES = ["", "tests.attacks.lies:one_flipped_bit", ""]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.soak)])
async def test_it_is_convicted(model: Path, tmp_path: Path, dtype: str) -> None:
    async with arena(model, tmp_path, lies=LIES, arguments=("--dtype", dtype)) as field:
        result = await field.run(RunRequest(PROMPT, 12, speculation="plain", draft="none"))
        verdict = await field.audit(result.receipt, frames=ALL)
        assert verdict.refusal is Refusal.AUDIT, verdict.line
        assert (
            f"{field.nodes.nodes[1].id[:8]} layers [4, 8): position" in verdict.line and "bit for bit" in verdict.line
        )
        with within_limits_only():
            verdict = await field.audit(result.receipt, frames=ALL)
        assert dtype == "bfloat16" or verdict.level is Level.SAMPLED, verdict.line
