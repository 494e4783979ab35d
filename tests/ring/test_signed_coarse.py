"""Audits of rings whose activations cross in int8 or fp8: honest stages pass, lying ones are caught."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from receipts.check.verdict import Level
from receipts.format.errors import Refusal
from swarm.model.block import Block, Job, load_block
from swarm.model.files.checkpoint import Checkpoint
from swarm.run.api import RunRequest
from tests.ring.signed import LIES, signed_ring
from tests.ring.test_signed import PROMPT, SPANS, Stretched, audited, receipt_of, small, wide

__all__ = ["small", "wide"]  # fixtures, used by name

COARSE = ["int8", "fp8"]
BF16 = torch.bfloat16


class Cheaper(Stretched):
    """Computes what bfloat16 leaves of weights and rows, and says float32."""

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        for parameter in block.loaded.model.parameters():
            parameter.data = parameter.data.to(BF16).float()

    def forward(self, jobs: Sequence[Job]) -> list[torch.Tensor]:
        return [rows.to(BF16).float() for rows in self.inner.forward(jobs)]


@pytest.mark.parametrize("speculation", ["plain", "stream"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("wire", COARSE)
async def test_honest_stages_pass(
    wide: Checkpoint, tmp_path: Path, wire: str, dtype: torch.dtype, speculation: str
) -> None:
    async with signed_ring(wide, SPANS, tmp_path, dtype=dtype, wire=wire) as ring:
        verdict = await audited(ring, await receipt_of(ring, 24, speculation), wide)
        assert (verdict.exit_code, verdict.level) == (0, Level.SAMPLED), verdict.line


async def test_a_recovered_ring_is_not_convicted(wide: Checkpoint, tmp_path: Path) -> None:
    """Rows that are sent again to fill the newcomer are held against the same grid. Whoever was lost opens nothing, so
    that the audit alone does not conclude."""
    async with signed_ring(wide, [*SPANS, SPANS[1]], tmp_path, dtype=BF16, wire="int8") as ring:
        result = await ring.generate(RunRequest(PROMPT, max_tokens=40, speculation="plain"), drop_after=12)
        verdict = await audited(ring, Path(str(result.receipt)), wide)
        assert result.recoveries == 1
        assert (verdict.exit_code, verdict.refusal, verdict.level) == (4, None, Level.SIGNED), verdict.line
        assert "opened nothing" in verdict.line


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("wire", COARSE)
async def test_honest_stages_pass_a_hundred_times(wide: Checkpoint, tmp_path: Path, wire: str) -> None:
    chooser = random.Random(31)
    for number in range(50):
        for dtype in (torch.float32, BF16):
            prompt = tuple(chooser.randrange(300) for _ in range(chooser.randint(4, 60)))
            folder = tmp_path / f"{number}-{dtype}"
            async with signed_ring(wide, SPANS, folder, dtype=dtype, wire=wire, threads=1 + number % 2) as ring:
                path = await receipt_of(ring, 32, chooser.choice(["plain", "chain", "tree", "stream"]), prompt)
                verdict = await audited(ring, path, wide)
            assert (verdict.exit_code, verdict.level) == (0, Level.SAMPLED), (number, verdict.line)


LIARS = [("fp8", 1, lie) for lie in LIES] + [("int8", 0, "int8"), ("int8", 1, "int4"), ("fp8", 2, "int8")]


@pytest.mark.parametrize(("wire", "stage", "lie"), LIARS)
async def test_a_lying_stage_is_caught(wide: Checkpoint, tmp_path: Path, wire: str, stage: int, lie: str) -> None:
    async with signed_ring(wide, SPANS, tmp_path, dtype=BF16, wire=wire, twists={stage: LIES[lie]}) as ring:
        verdict = await audited(ring, await receipt_of(ring, 160 if stage == 2 else 24), wide)
        assert verdict.refusal is Refusal.AUDIT, verdict.line
        assert ring.nodes[stage].identity.id.hex()[:8] in verdict.line


@pytest.mark.parametrize("wire", COARSE)
async def test_a_cheaper_type_than_ordered_is_caught(wide: Checkpoint, tmp_path: Path, wire: str) -> None:
    """bfloat16 where the order says float32: finer than a step of the wire, and found all the same."""
    block = Cheaper(load_block(wide, *SPANS[1], torch.device("cpu"), torch.float32, blocked=False))
    async with signed_ring(wide, SPANS, tmp_path, wire=wire, blocks={1: block}) as ring:
        verdict = await audited(ring, await receipt_of(ring, 24), wide)
        assert verdict.refusal is Refusal.AUDIT and ring.nodes[1].identity.id.hex()[:8] in verdict.line


@pytest.mark.parametrize("wire", COARSE)
async def test_a_stage_of_a_smaller_model_is_caught(
    wide: Checkpoint, tmp_path: Path, small: Checkpoint, wire: str
) -> None:
    block = load_block(small, 1, 3, torch.device("cpu"), torch.float32, exact=False)  # its layers keep their numbers
    block.first, block.last, block.n_layers = SPANS[1][0], SPANS[1][1], 8
    async with signed_ring(wide, SPANS, tmp_path, wire=wire, blocks={1: Stretched(block)}) as ring:
        verdict = await audited(ring, await receipt_of(ring, 16), wide)
        assert verdict.refusal is Refusal.AUDIT and ring.nodes[1].identity.id.hex()[:8] in verdict.line
