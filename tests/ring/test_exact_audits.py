"""Honest nodes with a run to themselves, audited by a verifier that has their kernels: every opened row is equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swarm.run.api import RunRequest
from swarm.run.ring_client import Loss, RingLink
from tests.attacks.arena import PROMPT, Arena, arena
from tests.attacks.conftest import model

__all__ = ["model"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.soak)])
async def test_no_honest_row_differs_by_a_bit(model: Path, tmp_path: Path, dtype: str) -> None:
    async with arena(model, tmp_path, arguments=("--dtype", dtype)) as field:
        for speculation, wire in (("plain", "model"), ("tree", "int8")):
            await _all_equal(field, RunRequest(PROMPT, 16, speculation=speculation, wire=wire))  # type: ignore[arg-type]

        def seen(link: RingLink, tokens: int) -> None:
            if link.opening.epoch == 0 and tokens >= 4:
                link.losses.append(Loss(0, -1, "a whim"))
                link.wake.set()

        recovered = await _all_equal(field, RunRequest(PROMPT, 16, speculation="stream"), seen)
        assert recovered.recoveries == 1


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
async def test_nor_in_a_hundred_audits(model: Path, tmp_path: Path, dtype: str) -> None:
    async with arena(model, tmp_path, arguments=("--dtype", dtype)) as field:
        for number in range(50):
            prompt = tuple(3 + (number * 7 + place * 5) % 80 for place in range(4 + number % 60))
            speculation = ("plain", "chain", "tree", "stream")[number % 4]
            wire = ("model", "int8", "fp8")[number % 3]
            await _all_equal(field, RunRequest(prompt, 24, speculation=speculation, wire=wire))  # type: ignore[arg-type]


async def _all_equal(field: Arena, request: RunRequest, seen: Any = lambda link, tokens: None) -> Any:
    result = await field.run(request, seen)
    verdict = await field.audit(result.receipt, frames=4096)
    texts = [claim.text for claim in verdict.claims if claim.subject == "audit"]
    assert verdict.met == {"audit", "exact"}, (request.speculation, request.wire, verdict.line, texts)
    assert all("EXACT: " in text for text in texts if "recomputed" in text)
    return result
