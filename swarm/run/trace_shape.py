"""A trace laid out for drawing: bars of passes in lanes, where a pass was when, and the fate of drafted rows. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from swarm.run.trace import RunTrace, TracedPass

SegmentKind = Literal["way", "queue", "compute"]


@dataclass(frozen=True)
class Bar:
    """A pass from `begin_us` to `end_us` in lane number `lane`; `lost`: it never came home."""

    traced: TracedPass
    begin_us: int
    end_us: int
    lane: int

    @property
    def lost(self) -> bool:
        return self.traced.answered_us is None


@dataclass(frozen=True)
class PassSegment:
    """What a pass did from `begin_us` to `end_us`: on hop or at stage number `place`."""

    part: SegmentKind
    place: int
    begin_us: int
    end_us: int


def bars(trace: RunTrace) -> tuple[Bar, ...]:
    """Every kept pass, in as few lanes as have room for all that are under way at once.

    A lost pass ends when the loss was seen, or with the run.
    """
    seen: dict[int, int] = {}
    for loss in trace.losses:
        seen.setdefault(loss.ring, loss.seen_us)
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    found: list[Bar] = []
    for one in sorted(trace.passes, key=lambda one: one.sent_us):
        end = one.answered_us
        if end is None:
            end = max(one.sent_us, min(seen.get(one.ring, trace.elapsed_us), max(trace.elapsed_us, one.sent_us)))
        while busy and busy[0][0] <= one.sent_us:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (end, lane))
        found.append(Bar(one, one.sent_us, end, lane))
    return tuple(found)


def segments(bar: Bar, weights: Sequence[float] = ()) -> tuple[PassSegment, ...]:
    """Where a pass was when: hop, wait and work at each stage, the way home.

    Stages say how long, not when, since clocks of different machines are not compared: only the sum of the ways is
    known. `weights` share it among the hops (round trips that both ends signed); without them all are drawn alike.
    """
    one = bar.traced
    if not one.computed_us:
        return (PassSegment("way", 0, bar.begin_us, bar.end_us),) if bar.end_us > bar.begin_us else ()
    count = len(one.computed_us) + 1
    spent = sum(one.queued_us) + sum(one.computed_us)
    way = max(0, bar.end_us - bar.begin_us - spent)
    shares = list(weights) if len(weights) == count and sum(weights) > 0 else [1.0] * count
    whole, at = sum(shares), float(bar.begin_us)
    found: list[PassSegment] = []

    def add(part: SegmentKind, place: int, length: float) -> None:
        nonlocal at
        end = min(at + length, bar.end_us)
        if round(end) > round(at):
            found.append(PassSegment(part, place, round(at), round(end)))
        at = end

    for place, (queued, computed) in enumerate(zip(one.queued_us, one.computed_us, strict=True)):
        add("way", place, way * shares[place] / whole)
        add("queue", place, queued)
        add("compute", place, computed)
    add("way", count - 1, bar.end_us - at)
    return tuple(found)


def in_flight(found: Sequence[Bar], begin_us: int, end_us: int, count: int) -> list[int]:
    """The most passes under way at once, in each of `count` equal parts of the time."""
    most = [0] * count
    moments = sorted([(bar.begin_us, 1) for bar in found] + [(bar.end_us, -1) for bar in found])
    flying, before = 0, 0
    length = max(1, end_us - begin_us)

    def place(us: int) -> int:
        return min(count - 1, max(0, (us - begin_us) * count // length))

    for us, step in moments:
        for cell in range(place(before), place(us) + 1):
            most[cell] = max(most[cell], flying)
        flying += step
        most[place(us)] = max(most[place(us)], flying)
        before = us
    return most


@dataclass(frozen=True)
class Fate:
    """A drafted row of the token at index `token` of the answer (0: the first); `parent` is the id before it.

    `right`: None where the answer ended before it mattered.
    """

    id: int
    parent: int
    token: int
    right: bool | None


def fates(trace: RunTrace) -> tuple[Fate, ...]:
    """Every drafted row that was sent and is kept, in the order of sending."""
    end = trace.prompt_tokens + trace.new_tokens
    found = []
    for one in trace.passes:
        right = set(one.right)
        for id, parent, position in zip(one.rows, one.parents, one.positions, strict=True):
            fate = True if id in right else None if position >= end else False
            found.append(Fate(id, parent, position - trace.prompt_tokens, fate))
    return tuple(found)


@dataclass(frozen=True)
class Column:
    """Tokens [first, last) of the answer: how many of them a draft foresaw, and rows drafted for them that were lost,
    or never decided."""

    first: int
    last: int
    right: int
    lost: int
    undecided: int


def columns(trace: RunTrace, most: int) -> tuple[Column, ...]:
    """Fates by token; of a long answer several tokens share one of `most` columns."""
    told = fates(trace)
    tokens = max([trace.new_tokens, *(fate.token + 1 for fate in told)])
    each = max(1, -(-tokens // most))
    sums = [[0, 0, 0] for _ in range(-(-tokens // each))]
    for fate in told:
        if fate.token >= 0:
            sums[fate.token // each][0 if fate.right else 2 if fate.right is None else 1] += 1
    return tuple(Column(place * each, min(tokens, (place + 1) * each), *cell) for place, cell in enumerate(sums))


def colour_of(trace: RunTrace) -> Mapping[str, int]:
    """A number for each node, in order of appearance."""
    return {
        node: number
        for number, node in enumerate(dict.fromkeys(stage.node for ring in trace.rings for stage in ring.stages))
    }
