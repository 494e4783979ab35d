"""Answer one frame of twenty with weights of a byte, over a wire whose steps are larger than the difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from receipts.check.verdict import Level
from receipts.format.errors import Refusal
from swarm.run.api import RunRequest
from tests.attacks.arena import PROMPT, arena
from tests.attacks.exactness import ALL, within_limits_only

LIES = ["", "tests.attacks.lies:int8_in_one_frame_of_twenty", ""]
LYING = len(PROMPT) + 4
"""Position of the row in frame 5: the prompt is frame 0."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("wire", "runs"),
    [
        ("int8", 2),
        pytest.param("fp8", 6, marks=pytest.mark.soak),
        pytest.param("int8", 12, marks=pytest.mark.soak),
        pytest.param("model", 6, marks=pytest.mark.soak),
    ],
)
async def test_it_is_convicted_every_time(model: Path, tmp_path: Path, wire: str, runs: int) -> None:
    async with arena(model, tmp_path, lies=LIES, arguments=("--dtype", "bfloat16")) as field:
        liar = bytes.fromhex(field.nodes.nodes[1].id).hex()[:8]
        for number in range(runs):
            prompt = (*PROMPT[:-1], 50 + number)
            result = await field.run(RunRequest(prompt, 16, speculation="plain", draft="none", wire=wire))  # type: ignore[arg-type]
            verdict = await field.audit(result.receipt, frames=ALL)
            assert verdict.refusal is Refusal.AUDIT, verdict.line
            assert f"{liar} layers [4, 8): position {LYING} (frame 6) is the first of 1 opened rows" in verdict.line
        with within_limits_only():
            verdict = await field.audit(result.receipt, frames=ALL)
        assert wire == "model" or verdict.level is Level.SAMPLED, verdict.line  # which is why bits are compared
