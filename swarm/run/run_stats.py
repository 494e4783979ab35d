"""What a run was: counted on the way, summed up at its end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from swarm.run.api import FinishReason, RunRequest, RunResult, StageInfo
from swarm.run.planned_frame import Counts

PARTS = ("queue", "compute", "network")
"""Of a pass: waiting at stages, being computed by them, and everything else, which is the way."""


@dataclass
class Tally:
    """What was measured on the way. Times are monotonic seconds."""

    started: float
    first_token: float | None = None
    ended: float = 0.0
    passes: int = 0
    rows: int = 0
    recoveries: int = 0
    lone_pass_ms: list[float] = field(default_factory=list)
    pass_ms: list[float] = field(default_factory=list)
    stage_us: list[list[int]] = field(default_factory=list)
    answered: int = 0
    parts_ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def took(self, pass_ms: float, stages: Sequence[tuple[int, int]]) -> None:
        """A pass was answered after `pass_ms`; `stages`: (queued, computed) microseconds at each."""
        queued, computed = (sum(us) / 1000.0 for us in zip(*stages, strict=True)) if stages else (0.0, 0.0)
        self.answered += 1
        for part, ms in zip(PARTS, (queued, computed, max(0.0, pass_ms - queued - computed)), strict=True):
            self.parts_ms[part] += ms

    def compute_ms(self, stage: int, last: int | None = None) -> float | None:
        """Median of what the compute of stage number `stage` took, over the `last` passes; None before the first."""
        passes = self.stage_us if last is None else self.stage_us[-last:]
        spent = [us[stage] / 1000.0 for us in passes if stage < len(us)]
        return statistics.median(spent) if spent else None


def with_compute(ring: Sequence[StageInfo], tally: Tally) -> tuple[StageInfo, ...]:
    """The ring with what each stage's compute took, in the median, ms per pass."""
    spent = [tally.compute_ms(index) for index in range(len(ring))]
    return tuple(
        info if ms is None else replace(info, compute_ms=round(ms, 3)) for info, ms in zip(ring, spent, strict=True)
    )


def summed_up(
    request: RunRequest,
    tally: Tally,
    counts: Counts,
    reason: FinishReason,
    *,
    text: str,
    tokens: Sequence[int],
    ring: Sequence[StageInfo],
    drafter: str,
    run_id: str,
    cached: int,
) -> RunResult:
    """The result of a run. `cached`: prompt tokens that the stages still had."""
    new, seconds = tuple(tokens), tally.ended - tally.started
    first = tally.first_token if tally.first_token is not None else tally.ended
    decoding = tally.ended - first
    speed = (len(new) - 1) / decoding if len(new) > 1 and decoding > 0 else len(new) / max(seconds, 1e-9)
    pass_ms = statistics.median(tally.lone_pass_ms[1:] or tally.pass_ms[1:] or tally.pass_ms or [0.0])
    sent = counts.drafted_rows
    depth_sent, depth_accepted = counts.by_depth()
    return RunResult(
        text=text,
        token_ids=new,
        prompt_token_ids=request.prompt_ids,
        new_tokens=len(new),
        seconds=round(seconds, 6),
        ttft_seconds=round(first - tally.started, 6),
        tokens_per_second=round(speed, 3),
        passes=tally.passes,
        tokens_per_pass=round(len(new) / max(1, tally.passes), 3),
        rows_sent=tally.rows,
        acceptance=round(counts.accepted / sent, 4) if sent else 0.0,
        drafter=drafter,
        speculation=request.speculation,
        ring=with_compute(ring, tally),
        finish_reason=reason,
        receipt=None,
        run_id=run_id,
        pass_ms=round(pass_ms, 3),
        plain_estimate_tokens_per_second=round(1000.0 / pass_ms, 3) if pass_ms else 0.0,
        held_to=request.sampling.constraint.kind if request.sampling.constraint is not None else None,
        cached_prompt_tokens=cached,
        recoveries=tally.recoveries,
        drafted_rows=counts.drafted_rows,
        depth_sent=depth_sent,
        depth_accepted=depth_accepted,
        parts_ms={part: round(ms / max(1, tally.answered), 3) for part, ms in tally.parts_ms.items()},
    )


def for_receipt(tally: Tally, counts: Counts) -> dict[str, int]:
    """Draft statistics for the receipt."""
    return {
        "passes": tally.passes,
        "rows_sent": tally.rows,
        "drafted": counts.drafted_rows,
        "accepted": counts.accepted,
        "recoveries": tally.recoveries,
    }
