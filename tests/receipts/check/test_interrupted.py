"""Audits of runs that were interrupted, also by a requester that wants them so: no frame is left to chance."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from receipts.check.parts import choose_rows
from receipts.check.samples import TokenSample
from receipts.check.verdict import Level
from receipts.check.verify import verify
from receipts.format.errors import Refusal
from tests.receipts.check.test_audit import Nodes, audit, bodies
from tests.receipts.conftest import PROMPT

TWENTY = tuple(range(100, 120))


def test_neighbours_who_open_different_bytes_of_an_interrupted_epoch(make_ring: Any, tmp_path: Path) -> None:
    """Nobody but the two signed that edge, each for itself: what one opens as sent, the other opens as taken in."""
    ring = make_ring(fail_at=2, stages=4, hear=lambda epoch, edge, body: body if (epoch, edge) != (0, 3) else body[1:])
    nodes = Nodes(ring, tmp_path)
    nodes.recompute = lambda *args: [TokenSample(0, 0.0)]  # type: ignore[method-assign]
    verdict = audit(ring, nodes, rows=40)
    assert verdict.refusal is Refusal.AUDIT and "different bytes for frame" in verdict.line
    assert all(ring.stages[index].author.id[:8] in verdict.line for index in (2, 3))


def test_an_interrupted_epoch_whose_nodes_all_account_for_it(make_ring: Any, tmp_path: Path) -> None:
    ring = make_ring(body_of=bodies(), tokens=TWENTY, fail_at=16, whim=True)
    verdict = audit(ring, Nodes(ring, tmp_path), rows=1)
    assert (verdict.level, verdict.exit_code) == (Level.SAMPLED, 0), verdict.line
    assert any("its own word and that of the stage before" in claim.text for claim in verdict.claims)


@pytest.mark.parametrize("edge", [1, 2])
@pytest.mark.parametrize("changed", [len(PROMPT), len(PROMPT) + 6, len(PROMPT) + 13])
def test_one_frame_of_an_interrupted_epoch_that_neighbours_tell_otherwise(
    make_ring: Any, tmp_path: Path, edge: int, changed: int
) -> None:
    """A requester interrupts its run at will, and a tail then computes on what nobody sent it: no sample misses it."""
    other = bodies()(changed, edge)

    def hear(epoch: int, at: int, body: bytes) -> bytes:
        return bytes(len(body)) if (epoch, at) == (0, edge) and body == other else body

    ring = make_ring(body_of=bodies(), tokens=TWENTY, fail_at=16, whim=True, hear=hear)
    nodes = Nodes(ring, tmp_path)
    nodes.recompute = lambda *args: [TokenSample(0, 0.0)]  # type: ignore[method-assign]
    verdict = audit(ring, nodes, rows=1)
    assert verdict.refusal is Refusal.AUDIT and "different bytes for frame" in verdict.line, verdict.line


def test_a_run_cut_into_many_epochs_leaves_no_long_one_with_a_frame(rings: Any) -> None:
    """A requester interrupts its run at will, so that a stage beside it may lie in the one epoch that is long."""
    run = verify(rings("plain").receipt).run
    assert run is not None
    short_ends = {node: replace(end, sent=2) for node, end in run.last.ends.items()}
    long_ends = {node: replace(end, sent=400) for node, end in run.last.ends.items()}
    many = [replace(run.last, number=number, ends=short_ends) for number in range(30)]
    cut = replace(run, epochs=(replace(run.last, ends=long_ends), *many))
    alone = replace(run, epochs=(replace(run.last, ends=long_ends),))
    for count in (32, 90):
        (first, *_), (of_cut, *_) = (
            [len(leaves) for part, leaves in choose_rows(one, count, random.Random(1)) if part.end.sent == 400]
            for one in (alone, cut)
        )
        assert first >= of_cut >= 0.8 * first, (first, of_cut)
    assert all(leaves for _, leaves in choose_rows(cut, 1, random.Random(1)))
