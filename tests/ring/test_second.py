"""A third node of the stage's kernels recomputes opened rows: a witness, named, refused by name, switched off."""

from __future__ import annotations

from pathlib import Path

import pytest

from receipts.check.verdict import Level, Standing, Verdict
from receipts.format.opening import PlannedStage
from swarm.base.errors import PeerError
from swarm.recheck.second import Seconds, Via
from swarm.run.api import RunRequest
from tests.attacks.arena import PROMPT, SPANS, arena
from tests.attacks.conftest import model

__all__ = ["model"]


@pytest.mark.timeout(300)
async def test_a_third_node_seconds_the_layers_that_it_has(model: Path, tmp_path: Path) -> None:
    async with arena(model, tmp_path, arguments=("--dtype", "bfloat16")) as field:
        result = await field.run(RunRequest(PROMPT, 8, speculation="tree"))
        stages = {node.layers: node.id for node in field.nodes.nodes}
        again = await field.nodes.add((4, 8), "--dtype", "bfloat16")
        found = await field.audit(result.receipt, frames=6, via=again.id)
        assert found.met == {"audit", "exact"} and found.level == Level.SAMPLED
        standing, text = _said(found, stages[4, 8])
        assert standing is Standing.WITNESSED and "all equal to the last bit" in text and again.id[:16] in text
        for span in (SPANS[0], SPANS[2]):
            standing, text = _said(found, stages[span])
            assert standing is Standing.NOT_CHECKED and "expected layers of 4-7, which this node has" in text


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_others_say_why_they_do_not(model: Path, tmp_path: Path) -> None:
    async with arena(model, tmp_path, arguments=("--dtype", "bfloat16")) as field:
        result = await field.run(RunRequest(PROMPT, 8, speculation="tree"))
        stages = {node.layers: node.id for node in field.nodes.nodes}
        tail = await field.nodes.add((8, 12), "--dtype", "bfloat16")
        other = await field.nodes.add((4, 8), "--dtype", "float32")
        closed = await field.nodes.add((4, 8), "--dtype", "bfloat16", "--no-recompute")
        standing, text = _said(await field.audit(result.receipt, frames=6, via=tail.id), stages[8, 12])
        assert standing is Standing.WITNESSED and "all equal to the last bit" in text
        for via, why in ((other, "this node has kernels"), (closed, "--no-recompute")):
            standing, text = _said(await field.audit(result.receipt, frames=6, via=via.id), stages[4, 8])
            assert standing is Standing.NOT_CHECKED and why in text, text
        itself = await field.audit(result.receipt, frames=6, via=stages[4, 8])
        assert "it is the stage itself" in _said(itself, stages[4, 8])[1]


def _said(verdict: Verdict, stage: str) -> tuple[Standing, str]:
    (claim,) = [claim for claim in verdict.claims if claim.subject == "second" and claim.about == stage]
    return claim.standing, claim.text


class Nobody:
    def call(self, node: str, message: object) -> None:
        raise PeerError("nobody is there")


def test_a_row_that_differs_is_told_and_proves_nothing() -> None:
    seconds = Seconds(Via("ab" * 32, Nobody()))  # type: ignore[arg-type]
    stage = PlannedStage("cd" * 32, 4, 8)
    seconds.note(stage, [True, False])
    seconds.refuse(stage, PeerError("busy: enough"))
    one, other = seconds.claims()
    assert (one.standing, other.standing) == (Standing.WITNESSED, Standing.NOT_CHECKED)
    assert "1 DIFFER" in one.text and one.figures == {"rows": 2.0, "equal": 1.0}
    assert "busy: enough" in other.text and seconds.refused(stage)


def test_a_node_of_the_run_is_no_witness_of_it() -> None:
    stage, other = PlannedStage("cd" * 32, 4, 8), "ab" * 32
    seconds = Seconds(Via(other, Nobody()), {stage.node, other})  # type: ignore[arg-type]
    seconds.note(stage, [True, True])
    (claim,) = seconds.claims()
    assert claim.standing is Standing.CLAIMED and "took part in this run and is no witness" in claim.text
