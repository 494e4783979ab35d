"""A loss and how it was healed, from a run's trace: what happened when, in steps that can be read and played. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from receipts import PlannedStage
from receipts.format.errors import printable
from swarm.run.trace import RunTrace, TracedLoss, TracedRing

Kind = Literal["lost", "planned", "stands", "pass", "token", "failed"]


@dataclass(frozen=True)
class HealingStep:
    """What happened `at_us` after the run began. `ring`: the plan that it is about, by its number."""

    at_us: int
    kind: Kind
    what: str
    ring: int


@dataclass(frozen=True)
class Recovery:
    """One loss and its healing.

    before, after  the rings on either side; `after` is None where no other ever stood
    steps          in order of time; the last one is the next token, where there was one
    """

    loss: TracedLoss
    before: TracedRing
    after: TracedRing | None
    steps: tuple[HealingStep, ...]

    @property
    def whole_us(self) -> int | None:
        """From the loss being seen to the next token."""
        return None if self.loss.next_token_us is None else self.loss.next_token_us - self.loss.seen_us


@dataclass(frozen=True)
class Takeover:
    """Layers [first, last) went from node `old` (None: from a part that is new) to `new`."""

    first: int
    last: int
    old: str | None
    new: str


def moved(before: Sequence[PlannedStage], after: Sequence[PlannedStage]) -> tuple[Takeover, ...]:
    """Who took which layers over: ranges of `after` that another node computed in `before`, in order of layers."""
    found: list[Takeover] = []
    for stage in after:
        for layer in range(stage.first, stage.last):
            old = next((other.node for other in before if other.first <= layer < other.last), None)
            if old == stage.node:
                continue
            last = found[-1] if found else None
            if last is not None and (last.last, last.old, last.new) == (layer, old, stage.node):
                found[-1] = Takeover(last.first, layer + 1, old, stage.node)
            else:
                found.append(Takeover(layer, layer + 1, old, stage.node))
    return tuple(found)


def recoveries(trace: RunTrace) -> tuple[Recovery, ...]:
    """Every loss that the trace tells of. A loss before the one before was healed is told by itself."""
    found = []
    for number, loss in enumerate(trace.losses):
        before = next((ring for ring in trace.rings if ring.ring == loss.ring), trace.rings[0])
        following = trace.losses[number + 1].ring if number + 1 < len(trace.losses) else None
        tried = [
            ring for ring in trace.rings if ring.ring > loss.ring and (following is None or ring.ring <= following)
        ]
        after = tried[-1] if tried else None
        found.append(Recovery(loss, before, after, _steps(trace, loss, before, tried)))
    return tuple(found)


def _steps(
    trace: RunTrace, loss: TracedLoss, before: TracedRing, tried: Sequence[TracedRing]
) -> tuple[HealingStep, ...]:
    last = (tried or [before])[-1].ring
    steps = [HealingStep(loss.seen_us, "lost", _loss_words(loss), before.ring)]
    for place, ring in enumerate(tried):
        took = "; ".join(_took(part) for part in moved(before.stages, ring.stages)) or "the same stages again"
        steps.append(HealingStep(ring.planned_us, "planned", f"ring {ring.ring} planned: {took}", ring.ring))
        if ring.stands_us is not None:
            steps.append(HealingStep(ring.stands_us, "stands", f"ring {ring.ring} stands{_filled(ring)}", ring.ring))
        elif place < len(tried) - 1:
            given_up = f"ring {ring.ring} never stood"
            steps.append(HealingStep(tried[place + 1].planned_us, "failed", given_up, ring.ring))
    first = next((one.sent_us for one in trace.passes if tried and one.ring == last), None)
    if first is not None:
        steps.append(HealingStep(first, "pass", f"first pass; {_count(loss.again, 'row')} sent again in all", last))
    if loss.next_token_us is not None:
        told = f"the next token, {span(loss.next_token_us - loss.seen_us)} after the loss was seen"
        steps.append(HealingStep(loss.next_token_us, "token", told, last))
    else:
        why = "" if tried else "no other ring was found; "
        end = max(trace.elapsed_us, loss.seen_us)
        steps.append(HealingStep(end, "failed", f"{why}the run ended without another token", last))
    return tuple(sorted(steps, key=lambda step: step.at_us))


def _loss_words(loss: TracedLoss) -> str:
    names = ", ".join(short(node) for node in loss.nodes) or "no stage in particular"
    what = f"{names} {'leaves' if loss.leaving else 'lost'}: {printable(loss.reason)}"
    if loss.heard_us:
        what += f"; the last answer had come {span(loss.seen_us - loss.heard_us)} before"
    if loss.passes:
        what += f"; {_count(loss.passes, 'pass', 'passes')} of {_count(loss.rows, 'row')} under way given up"
    return what


def _filled(ring: TracedRing) -> str:
    again = ", ".join(short(ring.stages[number].node) for number in ring.fresh if number < len(ring.stages))
    if again:
        return f"; {again} given {_count(ring.kept, 'position')} again"
    return f"; {_count(ring.kept, 'position')} kept" if ring.kept else ""


State = Literal["serving", "lost", "joining"]


@dataclass(frozen=True)
class HeldPart:
    """Layers [first, last) of a ring at one step of a recovery. `state`: "serving", "lost", or "joining"."""

    node: str
    first: int
    last: int
    state: State


def scene(recovery: Recovery, rings: Sequence[TracedRing], step: HealingStep) -> tuple[HeldPart, ...]:
    """Who holds which layers of the run's ring at a step."""
    ring = next((ring for ring in rings if ring.ring == step.ring), recovery.before)
    gone = set[str]() if recovery.loss.leaving else set(recovery.loss.nodes)
    planned = step.kind == "planned"
    fresh = {part.new for part in moved(recovery.before.stages, ring.stages)} if planned else set()
    stages = list(ring.stages)
    if planned:  # the lost one stays in sight beside whoever takes over
        here = {stage.node for stage in stages}
        stages += [stage for stage in recovery.before.stages if stage.node in gone - here]
    parts = []
    for stage in sorted(stages, key=lambda stage: (stage.first, stage.last)):
        lost = stage.node in gone and (step.kind in ("lost", "failed") or planned and stage not in ring.stages)
        state: State = "lost" if lost else "joining" if stage.node in fresh else "serving"
        parts.append(HeldPart(stage.node, stage.first, stage.last, state))
    return tuple(parts)


def recoveries_json(trace: RunTrace) -> list[dict[str, object]]:
    """What a page plays: each recovery with its steps, times in ms, and who holds what at each."""
    return [
        {
            "lost": list(one.loss.nodes),
            "whole_ms": None if one.whole_us is None else one.whole_us / 1000,
            "rows_again": one.loss.again,
            "steps": [
                {
                    "at_ms": step.at_us / 1000,
                    "after_ms": (step.at_us - one.loss.seen_us) / 1000,
                    "kind": step.kind,
                    "what": step.what,
                    "parts": [
                        {"node": part.node, "layers": [part.first, part.last], "state": part.state}
                        for part in scene(one, trace.rings, step)
                    ],
                }
                for step in one.steps
            ],
        }
        for one in recoveries(trace)
    ]


def recovery_lines(trace: RunTrace) -> list[str]:
    """The same for a terminal, a line a step."""
    lines = []
    for number, recovery in enumerate(recoveries(trace), 1):
        lines.append(f"recovery {number}" + ("" if recovery.whole_us is None else f": {span(recovery.whole_us)}"))
        for step in recovery.steps:
            lines.append(f"  {at(step.at_us):>9}  +{span(step.at_us - recovery.loss.seen_us)}  {step.what}")
    return lines


def _took(part: Takeover) -> str:
    layers = f"layer {part.first}" if part.last - part.first == 1 else f"layers {part.first}-{part.last - 1}"
    return f"{short(part.new)} takes {layers}" + (f" from {short(part.old)}" if part.old is not None else "")


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def short(node: str) -> str:
    """A key as people are shown it."""
    return node[:8]


def at(us: int) -> str:
    """A moment of the run."""
    return f"{us / 1e6:.3f} s"


def span(us: int) -> str:
    """How long something took."""
    return f"{us / 1000:.0f} ms" if abs(us) < 10_000_000 else f"{us / 1e6:.1f} s"
