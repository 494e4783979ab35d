"""A run's trace as a picture (SVG) and for a terminal: passes in flight, fates of drafted rows, recoveries. Pure."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from receipts.check.draw import COLOURS, FAINT, INK, RED, svg_head, svg_text
from receipts.check.run import ReceiptRun
from receipts.check.timeline import BARS, LEFT, WIDTH, headline, ring_lines, timeline, timeline_shapes
from receipts.check.verdict import Standing
from swarm.run.recoveries import recovery_lines, short, span
from swarm.run.trace import RunTrace, disagreement
from swarm.run.trace_shape import Bar, bars, colour_of, columns, fates, in_flight, segments

NODES = ("#3b82d0", "#c2571a", "#2f8f5b", "#9a62d8", "#a87b0a", "#d0508f", "#2a8fa5", "#7d8b2a")
"""One a node; each stands out from a light and from a dark page."""
GREEN = COLOURS[Standing.PROVEN]
MOST_BARS = 240
MOST_COLUMNS = 124
MOST_CELLS = 14
LANES = 110
SPARKS = "▁▂▃▄▅▆▇█"
NO_TRACE = (
    "A receipt holds sums, not the times of single passes: those are with whoever ran it, in a file beside the receipt "
    "(RECEIPT.trace.json)"
)

Weights = Callable[[int], Sequence[float]]
"""By what the time on the way is shared among the hops of a ring; empty: evenly."""


@dataclass(frozen=True)
class Told:
    """A run as its receipt tells it and, where the requester's trace is here and fits, as that does; else `why` not."""

    run: ReceiptRun
    trace: RunTrace | None
    why: str = NO_TRACE


def told(run: ReceiptRun, trace: RunTrace | None) -> Told:
    """Hold a trace against its receipt."""
    if trace is None:
        return Told(run, None)
    wrong = disagreement(trace, run.order_digest, dict(run.close.draft))
    return Told(run, None, f"The trace beside the receipt is not drawn: {wrong}") if wrong else Told(run, trace)


def hop_weights(run: ReceiptRun, ring: int) -> tuple[float, ...]:
    """Least round trips of the edges of a ring, as both ends signed them; empty where one is not signed."""
    epoch = next((epoch for epoch in run.epochs if epoch.number == ring), None)
    if epoch is None:
        return ()
    found = []
    for index in range(len(epoch.plan) + 1):
        edge = epoch.edges.get((index, "sender")) or epoch.edges.get((index, "receiver"))
        if edge is None or not edge.sender_rtt.count:
            return ()
        found.append(float(edge.sender_rtt.min_us))
    return tuple(found)


# For a terminal


def trace_text(of: Told, width: int = 100) -> str:
    """Passes in flight over time, drafted rows over the answer, and each recovery in steps."""
    width = max(width, 24)
    if of.trace is None:
        return "\n".join(textwrap.wrap(of.why, width)) + "\n"
    trace, found = of.trace, bars(of.trace)
    left = 12 if width >= 60 else 0
    room = max(12, width - left - 12)
    lines = textwrap.wrap(pass_words(trace), width, subsequent_indent="  ")
    flying = in_flight(found, 0, max(1, trace.elapsed_us), room)
    lines += _spark("in flight", flying, left, f"most {max(flying, default=0)}")
    if trace.drafted:
        cells = columns(trace, room)
        lines += textwrap.wrap(fate_words(trace), width, subsequent_indent="  ")
        lines += _spark("foreseen", [cell.right for cell in cells], left, f"of {trace.new_tokens}")
        lines += _spark("lost rows", [cell.lost for cell in cells], left, "by token")
    for line in recovery_lines(trace):
        lines += textwrap.wrap(line, width, subsequent_indent="      ", break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def _spark(name: str, values: Sequence[int], left: int, after: str) -> list[str]:
    most = max(values, default=0)
    line = "".join(SPARKS[min(7, value * 8 // (most + 1))] if value else " " for value in values)
    return [f"{name:<{left}}{line}  {after}"] if left else [name, f"{line}  {after}"]


def pass_words(trace: RunTrace) -> str:
    """Sums and times of the passes."""
    home = [one.answered_us - one.sent_us for one in trace.passes if one.answered_us is not None and one.computed_us]
    lost = sum(one.answered_us is None for one in trace.passes)
    passes, rows = trace.passes_sent, trace.rows_sent
    said = f"{passes} pass{'es' * (passes != 1)}, {rows} row{'s' * (rows != 1)}"
    if home:
        said += f", {span(min(home))} to {span(max(home))}, {span(round(statistics.median(home)))} in the median"
    said += f", {lost} not answered" if lost else ""
    return said + (f"; times of {trace.left_out} passes in the middle were not kept" if trace.left_out else "")


def fate_words(trace: RunTrace) -> str:
    """Sums of the drafted rows."""
    undecided = sum(fate.right is None for fate in fates(trace))
    said = f"{trace.drafted} drafted rows: {trace.accepted} right, {trace.drafted - trace.accepted} lost"
    return said + (f" ({undecided} of them behind the end of the answer)" if undecided else "")


# As a picture


def svg_run(of: Told, title: str) -> str:
    """The run as its receipt tells it, and below it what the requester saw (no scripts, no fonts, nothing fetched)."""
    line = timeline(of.run)
    shapes, height = timeline_shapes(line)
    said = [headline(line), *ring_lines(line)]
    if of.trace is None:
        for row in textwrap.wrap(of.why, 150):
            shapes.append(svg_text(20, height + 10, row, FAINT))
            height += 18
        said.append(of.why)
    else:
        drawn, words, high = panels(of.trace, lambda ring: hop_weights(of.run, ring))
        shapes += [f'<g transform="translate(0 {height})">', *drawn, "</g>"]
        said += words
        height += high
    head = svg_head(WIDTH, height + 16, title, said)
    return "\n".join([*head, svg_text(20, 28, title[:110], size=15), *shapes, "</svg>"]) + "\n"


def panels(trace: RunTrace, weights: Weights) -> tuple[list[str], list[str], int]:
    """What the requester saw: shapes, the same in sentences, and how high it is. `weights` of a ring's hops."""
    shapes: list[str] = []
    height = 0
    for drawn, high in (_passes(trace, weights), _rows(trace), _recoveries(trace)):
        if drawn:
            shapes += [f'<g transform="translate(0 {height + 16})">', *drawn, "</g>"]
            height += high + 16
    words = [pass_words(trace), *([fate_words(trace)] if trace.drafted else []), *recovery_lines(trace)]
    return shapes, words, height


def window(trace: RunTrace, found: Sequence[Bar]) -> Sequence[Bar]:
    """The passes that are drawn one by one: all, or of many those around the first loss, or the first."""
    if len(found) <= MOST_BARS or not trace.losses:
        return found[:MOST_BARS]
    seen = trace.losses[0].seen_us
    place = next((index for index, bar in enumerate(found) if bar.begin_us >= seen), len(found))
    first = max(0, min(place - MOST_BARS // 2, len(found) - MOST_BARS))
    return found[first : first + MOST_BARS]


def _passes(trace: RunTrace, weights: Weights) -> tuple[list[str], int]:
    found = bars(trace)
    shown = window(trace, found)
    if not shown:
        return [], 0
    whole = len(shown) == len(found) and not trace.left_out
    begin = 0 if whole else shown[0].begin_us
    end = max(begin + 1, *(bar.end_us for bar in shown))
    lanes = 1 + max(bar.lane for bar in shown)
    high = max(2.0, min(9.0, LANES / lanes))
    parts = [svg_text(20, 14, "Passes", size=13, weight=600), svg_text(LEFT, 14, pass_words(trace), FAINT)]

    def x(us: int) -> float:
        return LEFT + BARS * (us - begin) / (end - begin)

    paths: dict[tuple[str, float], list[str]] = {}

    def box(key: tuple[str, float], from_us: int, to_us: int, top: float, tall: float) -> None:
        wide = max(0.4, x(to_us) - x(from_us))
        paths.setdefault(key, []).append(f"M{x(from_us):.1f} {top:.1f}h{wide:.1f}v{tall:.1f}h-{wide:.1f}z")

    number = colour_of(trace)
    stages = {ring.ring: ring.stages for ring in trace.rings}
    for bar in shown:
        top = 26 + bar.lane * (high + 1)
        thin = top + high / 2 - 0.5
        if bar.lost:
            box((RED, 1), bar.begin_us, bar.end_us, thin - 0.5, 2)
            continue
        box((FAINT, 1), bar.begin_us, bar.end_us, thin, 1)
        for segment in segments(bar, weights(bar.traced.ring)):
            if segment.part == "way":
                continue
            colour = NODES[number[stages[bar.traced.ring][segment.place].node] % len(NODES)]
            opacity = 1.0 if segment.part == "compute" else 0.35
            box((colour, opacity), segment.begin_us, segment.end_us, top, high)
    for (colour, opacity), boxes in paths.items():
        faint = f' fill-opacity="{opacity}"' if opacity < 1 else ""
        parts.append(f'<path class="passes" fill="{colour}"{faint} d="{"".join(boxes)}"/>')
    bottom = 26 + lanes * (high + 1)
    for loss in trace.losses:
        if begin <= loss.seen_us <= end:
            parts.append(f'<path d="M{x(loss.seen_us):.1f} 20V{bottom:.1f}" stroke="{RED}" stroke-width="1"/>')
    parts.append(svg_text(20, 38, f"{lanes} at once at most" if lanes > 1 else "one at a time", FAINT))
    parts.append(svg_text(LEFT, bottom + 14, _moment(begin), FAINT))
    parts.append(svg_text(LEFT + BARS, bottom + 14, _moment(end), FAINT, anchor="end"))
    if not whole:
        parts.append(svg_text(LEFT + BARS / 2, bottom + 14, f"{len(shown)} of {trace.passes_sent} passes", FAINT,
                              anchor="middle"))  # fmt: skip
    legend, at = [svg_text(LEFT, bottom + 32, "computed by", FAINT)], LEFT + 84.0
    for node, count in list(number.items())[:8]:
        legend.append(f'<path fill="{NODES[count % len(NODES)]}" d="M{at:.0f} {bottom + 23:.0f}h10v10h-10z"/>')
        legend.append(svg_text(at + 14, bottom + 32, short(node), FAINT))
        at += 84
    signed = all(weights(ring.ring) for ring in trace.rings)
    ways = "by the round trips that both ends signed" if signed else "evenly, where round trips are not signed"
    note = f"Pale: waiting there. Line: on the way; stages say how long, not when, so the ways are shared {ways}."
    return [*parts, *legend, svg_text(LEFT, bottom + 50, note, FAINT, size=11)], round(bottom + 56)


def _rows(trace: RunTrace) -> tuple[list[str], int]:
    told_rows = fates(trace)
    cells = columns(trace, MOST_COLUMNS)
    if not told_rows or not cells:
        return [], 0
    wide = min(16.0, BARS / len(cells))
    parts = [svg_text(20, 14, "Drafted rows", size=13, weight=600), svg_text(LEFT, 14, fate_words(trace), FAINT)]
    each = cells[0].last - cells[0].first
    if each == 1:
        drawn, bottom, hidden = _tree(trace, wide)
        words = "filled: foreseen; hollow: drafted for that token and lost; lines lead to the row before"
        words += f"; {hidden} more lost ones are not drawn" if hidden else ""
    else:
        drawn, bottom = _sums(trace, wide)
        words = f"up: foreseen, of {each} tokens a column; down: rows drafted for them that were lost"
    note = f"Tokens 1 to {cells[-1].last}. {words[0].upper()}{words[1:]}."
    return [*parts, *drawn, svg_text(LEFT, bottom + 16, note, FAINT, size=11)], bottom + 22


def _tree(trace: RunTrace, wide: float) -> tuple[list[str], int, int]:
    """A column a token: the row that was right on top, the lost ones below, each with a line to the row before it."""
    last: dict[int, tuple[float, float]] = {}
    depth: dict[int, int] = {}
    right: list[str] = []
    lost: list[str] = []
    lines: list[str] = []
    hidden = 0
    side = max(1.5, min(8.0, wide - 1.5))
    for fate in sorted(fates(trace), key=lambda fate: (fate.token, not fate.right)):
        row = 0 if fate.right else depth.get(fate.token, 0) + 1
        if row >= MOST_CELLS or fate.token < 0:
            hidden += 1
            continue
        if row:
            depth[fate.token] = row
        x, y = LEFT + wide * fate.token, 26.0 + (side + 2) * row
        (right if fate.right else lost).append(f"M{x:.1f} {y:.1f}h{side:.1f}v{side:.1f}h-{side:.1f}z")
        from_x, from_y = last.get(fate.parent, (x - wide, 26.0))
        if fate.token > 0 and abs(x - from_x - wide) < 0.1:
            lines.append(f"M{from_x + side:.1f} {from_y + side / 2:.1f}L{x:.1f} {y + side / 2:.1f}")
        last[fate.id] = (x, y)
    spine = f"M{LEFT} {26 + side / 2:.1f}h{wide * max(1, trace.new_tokens):.1f}"
    bottom = 26 + (side + 2) * (1 + max(depth.values(), default=0))
    drawn = [
        f'<path d="{spine}" stroke="{FAINT}" stroke-width="0.6" fill="none" opacity="0.6"/>',
        f'<path d="{"".join(lines)}" stroke="{FAINT}" stroke-width="0.6" fill="none"/>',
        f'<path class="right" d="{"".join(right)}" fill="{GREEN}"/>',
        f'<path class="lost" d="{"".join(lost)}" fill="none" stroke="{RED}" stroke-width="0.8"/>',
    ]
    return drawn, round(bottom), hidden


def _sums(trace: RunTrace, wide: float) -> tuple[list[str], int]:
    cells = columns(trace, MOST_COLUMNS)
    tallest = max(1, max(cell.last - cell.first for cell in cells))
    deepest = max(1, max(cell.lost for cell in cells))
    middle, half = 26 + 40, 38
    right: list[str] = []
    lost: list[str] = []
    for place, cell in enumerate(cells):
        x = LEFT + wide * place
        for boxes, high in ((right, -half * min(1.0, cell.right / tallest)), (lost, half * cell.lost / deepest)):
            if high:
                boxes.append(f"M{x:.1f} {middle}h{wide - 0.8:.1f}v{high:.1f}h-{wide - 0.8:.1f}z")
    drawn = [
        f'<path class="right" d="{"".join(right)}" fill="{GREEN}"/>',
        f'<path class="lost" d="{"".join(lost)}" fill="none" stroke="{RED}" stroke-width="0.8"/>',
        f'<path d="M{LEFT} {middle}h{BARS}" stroke="{INK}" stroke-width="0.5"/>',
        svg_text(20, middle - half + 10, f"foreseen, up to {tallest}", FAINT),
        svg_text(20, middle + half, f"lost, up to {deepest}", FAINT),
    ]
    return drawn, middle + half


def _recoveries(trace: RunTrace) -> tuple[list[str], int]:
    lines = [row for line in recovery_lines(trace)[:40] for row in textwrap.wrap(line, 140, subsequent_indent=" " * 8)]
    if not lines:
        return [], 0
    parts = [svg_text(20, 14, "Recoveries", size=13, weight=600)]
    parts += [
        svg_text(20 + 16 * line.startswith(" "), 34 + 17 * row, line.strip(), FAINT) for row, line in enumerate(lines)
    ]
    return parts, 34 + 17 * len(lines)


def _moment(us: int) -> str:
    return f"{us / 1e6:.2f} s" if us else "0"
