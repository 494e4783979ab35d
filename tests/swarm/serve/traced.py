"""A trace that fits a receipt: two rings of its nodes, the second without one that was lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from receipts import verify
from swarm.model.rows import Layout, no_commits
from swarm.ring.certain_rows import certain_rows
from swarm.ring.opening import StagePlan
from swarm.run.planned_frame import PlannedFrame
from swarm.run.trace import TRACE, RunTrace
from swarm.run.tracer import Tracer

SPARE = bytes(range(32))


def fitting_trace(receipt: bytes) -> RunTrace:
    """As the requester of that run might have kept it, had its second node been lost. Sums are the receipt's."""
    run = verify(receipt).run
    assert run is not None
    stages = [StagePlan(bytes.fromhex(stage.node), (), stage.first, stage.last) for stage in run.last.plan]
    tracer = Tracer(0.0, run.close.first_position)
    tracer.planned(0, stages, 0, 0.0)
    tracer.stands(0, (), 0.02)
    for seq in range(4):
        rows = certain_rows(Layout(64, 512), seq, [1, 2])
        tracer.sent(seq // 3, PlannedFrame(seq, no_commits(), rows), 0.42 if seq == 3 else 0.1 + 0.03 * seq)
        if seq == 2:
            tracer.lost(0, [stages[1].node], "the connection was lost", False, 0.35)
            tracer.planned(1, [stages[0], replace(stages[1], node=SPARE), *stages[2:]], 4, 0.36)
            tracer.stands(1, tuple({"fresh": number == 1} for number in range(len(stages))), 0.4)
        else:
            tracer.answered(seq, [(900, 4000)] * len(stages), 1, [], 0.2 + 0.1 * seq)
    trace = tracer.trace("ab" * 16, run.order_digest, run.close.new_tokens, 0.2, 0.6)
    draft = run.close.draft
    sums = {"passes_sent": draft["passes"], "rows_sent": draft["rows_sent"]}
    return replace(trace, **sums, drafted=draft["drafted"], accepted=draft["accepted"])


def write_beside(receipt: Path) -> None:
    """Where a requester leaves it."""
    receipt.with_suffix(TRACE).write_bytes(fitting_trace(receipt.read_bytes()).to_bytes())
