"""Traces of runs that never were: whatever happened, sums agree, bars stay inside their axes, and drawings are XML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receipts import PlannedStage
from receipts.check.draw import DARK, PAPER
from swarm.base.errors import UsageError
from swarm.model.rows import Layout, no_commits
from swarm.ring.certain_rows import certain_rows
from swarm.ring.opening import StagePlan
from swarm.run import trace as bounds
from swarm.run.planned_frame import PlannedFrame
from swarm.run.recoveries import moved, recoveries, recoveries_json, recovery_lines, scene
from swarm.run.trace import RunTrace, parse_trace
from swarm.run.trace_draw import LEFT, MOST_BARS, NO_TRACE, NODES, panels, window
from swarm.run.trace_shape import bars, columns, fates, in_flight, segments
from swarm.run.tracer import Tracer

PROMPT, LAYOUT = 5, Layout(64, 512)
NODE = [bytes([number]) * 32 for number in range(6)]
NOWHERE = ()


def frame(seq: int, first: int, certain: int, drafted: Sequence[tuple[int, int, int]]) -> PlannedFrame:
    """A frame with certain rows, and drafted ones (id, parent, position)."""
    rows = certain_rows(LAYOUT, first, [1] * certain + [2] * len(drafted))
    position = np.array([*range(first, first + certain), *(row[2] for row in drafted)], np.uint32)
    nodes, parents = tuple(row[0] for row in drafted), tuple(row[1] for row in drafted)
    return PlannedFrame(seq, no_commits(), replace(rows, position=position), 0, nodes, parents)


@st.composite
def traces(draw: st.DrawFn) -> RunTrace:
    """A run as a tracer may see it: passes overlap, answers settle rows, rings are lost and formed again."""
    now, seq, tokens, ring, node = 0.0, 0, 0, 0, 1
    first: float | None = None
    tracer = Tracer(0.0, PROMPT)
    tracer.planned(0, [StagePlan(NODE[0], NOWHERE, 0, 2), StagePlan(NODE[1], NOWHERE, 2, 4)], 0, now)
    tracer.stands(0, ({"fresh": True}, {"fresh": True}), now + 0.001)
    flying: list[PlannedFrame] = []
    stages = 2
    for what in draw(st.lists(st.sampled_from("sssaaal"), max_size=40)):
        now += draw(st.floats(0, 0.05))
        if what == "s":
            count = draw(st.integers(0, 4))
            drafted = [
                (node + i, max(0, node + i - draw(st.integers(1, 2))), PROMPT + tokens + i) for i in range(count)
            ]
            node += count
            certain = draw(st.integers(0 if count else 1, 3))
            flying.append(frame(seq, max(0, PROMPT + tokens - certain), certain, drafted))
            tracer.sent(ring, flying[-1], now)
            seq += 1
        elif what == "a" and flying:
            one = flying.pop(draw(st.integers(0, len(flying) - 1)))
            flying = [other for other in flying if other.seq > one.seq]
            right = one.nodes[: draw(st.integers(0, len(one.nodes)))]
            settled = len(right) + draw(st.integers(0, 1))
            times = [(draw(st.integers(0, 9000)), draw(st.integers(0, 9000))) for _ in range(stages)]
            tracer.answered(one.seq, times, settled, right, now)
            tokens += settled
            first = now if settled and first is None else first
        elif what == "l":
            gone = draw(st.sets(st.sampled_from(NODE[:3])))
            tracer.lost(ring, tuple(gone), "gone <&> \x1b[31m", draw(st.booleans()), now)
            ring, flying, stages = ring + 1, [], draw(st.integers(1, 3))
            plan = [StagePlan(draw(st.sampled_from(NODE)), NOWHERE, i, i + 1) for i in range(stages)]
            tracer.planned(ring, plan, tokens, now + 0.001)
            if draw(st.booleans()):
                tracer.stands(ring, tuple({"fresh": draw(st.booleans())} for _ in plan), now + 0.002)
    return tracer.trace("ab" * 16, "cd" * 32, tokens, first, now + draw(st.floats(0, 1)))


@settings(max_examples=60, deadline=None)
@given(traces(), st.integers(1, 60))
def test_sums_agree_and_everything_is_inside(trace: RunTrace, room: int) -> None:
    assert parse_trace(trace.to_bytes()) == trace
    told = fates(trace)
    assert len(told) == trace.drafted and sum(fate.right is True for fate in told) == trace.accepted
    cells = columns(trace, room)
    assert len(cells) <= room and sum(cell.right + cell.lost + cell.undecided for cell in cells) == trace.drafted
    assert [cell.first for cell in cells[1:]] == [cell.last for cell in cells[:-1]]
    found = bars(trace)
    assert len(found) == trace.passes_sent
    for one in found:
        assert 0 <= one.begin_us <= one.end_us <= max(trace.elapsed_us, one.begin_us)
        parts = segments(one)
        assert all(a.end_us <= b.begin_us for a, b in zip(parts, parts[1:], strict=False))
        assert all(one.begin_us <= part.begin_us < part.end_us <= one.end_us for part in parts)
        assert sum(part.end_us - part.begin_us for part in parts) <= one.end_us - one.begin_us
    for lane in {one.lane for one in found}:
        inside = [one for one in found if one.lane == lane]
        assert all(a.end_us <= b.begin_us for a, b in zip(inside, inside[1:], strict=False))
    flying = in_flight(found, 0, max(1, trace.elapsed_us), room)
    assert len(flying) == room and max(flying) <= len(found)
    assert bool(max(flying)) == any(one.end_us > one.begin_us for one in found)


@settings(max_examples=40, deadline=None)
@given(traces())
def test_a_recovery_is_told_in_order(trace: RunTrace) -> None:
    healed = recoveries(trace)
    assert len(healed) == len(trace.losses)
    for one in healed:
        moments = [step.at_us for step in one.steps]
        assert moments == sorted(moments) and moments[0] <= one.loss.seen_us
        assert one.whole_us is None or one.whole_us >= 0
        if one.after is not None:
            for part in moved(one.before.stages, one.after.stages):
                assert part.old != part.new and part.first < part.last
        assert one.steps[0].kind == "lost" or one.steps[0].at_us == one.loss.seen_us
        for step in one.steps:
            parts = scene(one, trace.rings, step)
            assert parts and {part.state for part in parts} <= {"serving", "lost", "joining"}
            assert (
                step.kind != "lost"
                or not {p.node for p in parts if p.state == "serving"} & set(one.loss.nodes)
                or (one.loss.leaving)
            )
    assert json.loads(json.dumps(recoveries_json(trace)))[: len(healed)] == recoveries_json(trace)
    assert all("\x1b" not in line for line in recovery_lines(trace))


@settings(max_examples=30, deadline=None)
@given(traces())
def test_a_drawing_is_xml_and_keeps_to_its_axes(trace: RunTrace) -> None:
    shapes, words, height = panels(trace, lambda ring: ())
    root = ElementTree.fromstring(f"<svg>{''.join(shapes)}</svg>")
    assert height >= 0 and (words or not trace.passes)
    for path in root.iter("path"):
        if path.get("class") in ("passes", "right", "lost"):
            for box in (path.get("d") or "").split("M")[1:]:
                x, width = float(box.split()[0]), float(box.split("h")[1].split("v")[0])
                assert LEFT - 0.1 <= x and x + width <= LEFT + 620 + 1.1
    assert not any("\x1b" in (text.text or "") for text in root.iter("text"))


def test_who_takes_over_which_layers() -> None:
    a, b, c, d = ("aa" * 32, "bb" * 32, "cc" * 32, "dd" * 32)
    before = [PlannedStage(a, 0, 4), PlannedStage(b, 4, 8)]
    after = [PlannedStage(a, 0, 2), PlannedStage(c, 2, 6), PlannedStage(d, 6, 8)]
    assert [(m.first, m.last, m.old, m.new) for m in moved(before, after)] == [
        (2, 4, a, c),
        (4, 6, b, c),
        (6, 8, b, d),
    ]
    assert moved(before, before) == ()


def test_a_long_run_keeps_its_ends_and_its_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = Tracer(0.0, PROMPT)
    tracer.planned(0, [StagePlan(NODE[0], NOWHERE, 0, 4)], 0, 0.0)
    count = 3 * bounds.MOST_ENDS
    for seq in range(count):
        tracer.sent(0, frame(seq, PROMPT + seq, 1, [(2 * seq + 1, 2 * seq, PROMPT + seq)]), seq / 1000)
        tracer.answered(seq, [(5, 10)], 1, [2 * seq + 1], seq / 1000 + 0.0005)
    trace = tracer.trace("ab" * 16, "cd" * 32, count, 0.0005, count / 1000)
    assert (trace.passes_sent, trace.drafted, trace.accepted) == (count, count, count)
    assert trace.left_out == count - 2 * bounds.MOST_ENDS
    assert (trace.passes[0].seq, trace.passes[-1].seq) == (0, count - 1)
    assert len(trace.to_bytes()) < 2_000_000 and parse_trace(trace.to_bytes()) == trace
    shapes, words, _ = panels(trace, lambda ring: ())
    assert len(window(trace, bars(trace))) == MOST_BARS and len("".join(shapes)) < 40_000
    assert f"{trace.left_out} passes in the middle were not kept" in " ".join(words)


@settings(max_examples=60, deadline=None)
@given(traces(), st.data())
def test_a_damaged_file_is_refused_in_words(trace: RunTrace, data: st.DataObject) -> None:
    raw = bytearray(trace.to_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] = data.draw(st.integers(0, 255))
    try:
        read = parse_trace(bytes(raw))
    except UsageError:
        return
    panels(read, lambda ring: ())  # what is accepted can be drawn


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_stand_out_from_either_page() -> None:
    def contrast(one: str, other: str) -> float:
        dark, light = sorted((luminance(one), luminance(other)))
        return (light + 0.05) / (dark + 0.05)

    assert all(contrast(colour, page) >= 3 for colour in NODES for page in (PAPER, DARK[PAPER]))
    for light, dark in DARK.items():
        if light not in (PAPER, "#f6f8fa", "#ddf4ff"):
            assert contrast(light, PAPER) >= 4.5 and contrast(dark, DARK[PAPER]) >= 4.5, light
    assert NO_TRACE
