"""Notes what happens to a run's passes, for its trace. Pure: the loop tells it what it did, and when."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from receipts import PlannedStage
from swarm.ring.opening import StagePlan
from swarm.run.planned_frame import PlannedFrame
from swarm.run.trace import FORMAT, MOST_ENDS, MOST_RINGS, VERSION, RunTrace, TracedLoss, TracedPass, TracedRing

_MOST_AWAITED = 8192
"""Drafted rows whose fate may still be told: more than stages let wait."""


@dataclass
class _Pass:
    ring: int
    seq: int
    sent_us: int
    first: int
    certain: int
    rows: tuple[int, ...]
    parents: tuple[int, ...]
    positions: tuple[int, ...]
    answered_us: int | None = None
    timings: tuple[tuple[int, int], ...] = ()
    tokens: int = 0
    right: list[int] = field(default_factory=list)

    def noted(self) -> TracedPass:
        queued, computed = (tuple(part) for part in zip(*self.timings, strict=True)) if self.timings else ((), ())
        return TracedPass(
            self.ring, self.seq, self.sent_us, self.answered_us, self.first, self.certain,
            self.rows, self.parents, self.positions, tuple(self.right), queued, computed, self.tokens,
        )  # fmt: skip


class Tracer:
    """Times are monotonic seconds; `started` is when the run began, with a prompt of so many tokens."""

    def __init__(self, started: float, prompt_tokens: int) -> None:
        self._started, self._prompt = started, prompt_tokens
        self._rings: list[TracedRing] = []
        self._losses: list[TracedLoss] = []
        self._begin: list[_Pass] = []
        self._end: deque[_Pass] = deque(maxlen=MOST_ENDS)
        self._flying: dict[int, _Pass] = {}
        self._awaited: dict[int, _Pass] = {}
        self._placed = self._reached = 0
        """Leading positions that were sent for certain, in this ring and before the last loss."""
        self._before: frozenset[int] = frozenset()
        self._heard_us = 0
        self._passes = self._rows = self._drafted = self._accepted = 0

    def _us(self, at: float) -> int:
        return max(0, round((at - self._started) * 1e6))

    def planned(self, ring: int, stages: Sequence[StagePlan], kept: int, at: float) -> None:
        """The run turns to another plan."""
        listed = tuple(PlannedStage(stage.node.hex(), stage.first, stage.last) for stage in stages)
        self._flying.clear()
        if len(self._rings) < MOST_RINGS:
            self._rings.append(TracedRing(ring, self._us(at), None, kept, listed, ()))

    def stands(self, ring: int, said: Sequence[Mapping[str, object]], at: float) -> None:
        """Every stage of it said yes, and what else they `said`."""
        last = self._rings[-1] if self._rings else None
        if last is not None and last.ring == ring:
            stands_us = self._us(at) if last.stands_us is None else last.stands_us
            fresh = tuple(number for number, stage in enumerate(said) if stage.get("fresh")) if last.kept else ()
            self._rings[-1] = replace(last, stands_us=stands_us, fresh=fresh)

    def sent(self, ring: int, planned: PlannedFrame, at: float) -> None:
        """A frame goes out."""
        rows = planned.rows
        certain = len(rows) - len(planned.nodes)
        first = int(rows.position[0]) if certain else 0
        positions = tuple(int(position) for position in rows.position[certain:])
        one = _Pass(ring, planned.seq, self._us(at), first, certain, planned.nodes, planned.parents, positions)
        self._flying[one.seq] = one
        self._passes += 1
        self._rows += len(rows)
        self._drafted += len(planned.nodes)
        if self._losses:
            again = max(0, min(first + certain, self._reached) - first) if certain else 0
            again += self._losses[-1].again + sum(node in self._before for node in planned.nodes)
            self._losses[-1] = replace(self._losses[-1], again=again)
        self._placed = max(self._placed, first + certain)
        for node in planned.nodes:
            self._awaited.pop(node, None)
            self._awaited[node] = one
        for node in [*self._awaited][:-_MOST_AWAITED]:
            del self._awaited[node]
        if len(self._begin) < MOST_ENDS:
            self._begin.append(one)
        else:
            self._end.append(one)

    def answered(
        self, seq: int, timings: Sequence[tuple[int, int]], tokens: int, right: Sequence[int], at: float
    ) -> None:
        """Its answer came, which made so many tokens certain and drafted rows `right`; `timings` in microseconds."""
        now = self._us(at)
        for other in [other for other in self._flying if other < seq]:  # they had no wanted rows, and are through
            self._flying.pop(other).answered_us = now
        one = self._flying.pop(seq, None)
        if one is not None:
            one.answered_us, one.timings, one.tokens = now, tuple(timings), tokens
            self._heard_us = now
        self._accepted += len(right)
        for node in right:
            if (holder := self._awaited.pop(node, None)) is not None:
                holder.right.append(node)
                self._placed = max(self._placed, holder.positions[holder.rows.index(node)] + 1)
        if tokens:
            for place, loss in enumerate(self._losses):
                if loss.next_token_us is None:
                    self._losses[place] = replace(loss, next_token_us=now)

    def lost(self, ring: int, nodes: Sequence[bytes], reason: str, leaving: bool, at: float) -> None:
        """Stages of the ring are lost, or leave, and with them what is under way."""
        flying = [*self._flying.values()]
        rows = sum(one.certain + len(one.rows) for one in flying)
        names = tuple(sorted(node.hex() for node in nodes))
        self._losses.append(
            TracedLoss(
                ring, self._us(at), self._heard_us, names, reason[:1000], leaving, len(flying), rows,
                again=0, next_token_us=None,
            )
        )  # fmt: skip
        self._reached = max(self._reached, self._placed)
        self._before = frozenset(self._awaited)

    def trace(self, run: str, order: str, new_tokens: int, first_token: float | None, ended: float) -> RunTrace:
        """What was noted, at the end of the run."""
        kept = {one.ring for one in self._rings}
        return RunTrace(
            format=FORMAT,
            version=VERSION,
            run=run,
            order=order,
            prompt_tokens=self._prompt,
            new_tokens=new_tokens,
            first_token_us=None if first_token is None else self._us(first_token),
            elapsed_us=self._us(ended),
            passes_sent=self._passes,
            rows_sent=self._rows,
            drafted=self._drafted,
            accepted=self._accepted,
            rings=tuple(self._rings),
            losses=tuple(self._losses),
            passes=tuple(one.noted() for one in (*self._begin, *self._end) if one.ring in kept),
        )
