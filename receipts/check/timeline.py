"""A run over time, from its receipt: which node was in the ring when, what it computed, what was lost (text and SVG).

Every time is the requester's own claim, by its clock; compute times are each node's. Nothing here judges: draw what a
verdict did not refuse.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from receipts.check.checks import short
from receipts.check.context import drawn_in
from receipts.check.draw import FAINT, INK, RED, svg_head, svg_text
from receipts.check.report import edge_rtt
from receipts.check.run import ReceiptRun
from receipts.format.errors import printable
from receipts.format.opening import Replan

IN_RING, APART, LOST, FIRST = "━", "·", "✗", "▼"
LEAST_BAR = 12
BAR, BUSY = "#ddf4ff", "#0969da"
LANE, LEFT, BARS, RIGHT, TOP = 30, 190, 620, 150, 74
WIDTH = LEFT + BARS + RIGHT
NOTE = 140
"""Letters that fit a line below the drawing."""


@dataclass(frozen=True)
class RingSpan:
    """One ring of a run. Times in microseconds since the order.

    tokens  positions [first, last) that it drew and the run kept
    lost    keys of the nodes that were lost when it ended; `reason` is why
    rtts    least round trip of every edge by sender/receiver, as both signed it
    """

    begin_us: int
    end_us: int
    tokens: tuple[int, int]
    lost: tuple[str, ...]
    reason: str
    rtts: tuple[str, ...]


@dataclass(frozen=True)
class LanePart:
    """What one node did in ring number `ring`: layers [first, last), and its own word on what it computed (us)."""

    ring: int
    first: int
    last: int
    compute_us: int | None


@dataclass(frozen=True)
class Timeline:
    """A run over time; `lanes` are the nodes by key, in order of their first layers."""

    elapsed_us: int
    first_token_us: int | None
    tokens: int
    rings: tuple[RingSpan, ...]
    lanes: tuple[tuple[str, tuple[LanePart, ...]], ...]


def timeline(run: ReceiptRun) -> Timeline:
    """Put the statements of a run in time. Clocks that go back are held still."""
    close, begun = run.close, run.order.time_us
    moments = [0]
    for statement in run.statements:
        if isinstance(statement.body, Replan):
            moments.append(max(moments[-1], min(statement.body.time_us - begun, close.elapsed_us)))
    ends = [*moments[1:], max(close.elapsed_us, moments[-1])]
    following = [*run.epochs[1:], None]
    rings = tuple(
        RingSpan(
            begin,
            end,
            drawn_in(run, epoch),
            after.lost if after is not None else (),
            after.reason if after is not None else "",
            tuple(edge_rtt(epoch, index) for index in range(len(epoch.plan) + 1)),
        )
        for epoch, begin, end, after in zip(run.epochs, moments, ends, following, strict=True)
    )
    parts: dict[str, list[LanePart]] = {}
    for epoch in run.epochs:
        for stage in epoch.plan:
            end = epoch.ends.get(stage.node)
            compute = end.compute_us if end is not None else None
            parts.setdefault(stage.node, []).append(LanePart(epoch.number, stage.first, stage.last, compute))
    lanes = sorted(parts.items(), key=lambda lane: (lane[1][0].first, lane[1][0].ring))
    first = close.first_token_us if close.new_tokens else None
    return Timeline(ends[-1], first, close.new_tokens, rings, tuple((key, tuple(of)) for key, of in lanes))


def headline(line: Timeline) -> str:
    """What happened, in a sentence."""
    said = f"{_seconds(line.elapsed_us)}, {line.tokens} token{'s' * (line.tokens != 1)}"
    if line.first_token_us is not None:
        said += f", the first after {_seconds(line.first_token_us)}"
    return said + (f", {len(line.rings)} rings" if len(line.rings) > 1 else "")


def ring_lines(line: Timeline) -> list[str]:
    """Each ring in a sentence."""
    found = []
    for number, ring in enumerate(line.rings):
        first, last = ring.tokens
        drew = f"positions {first}-{last - 1}" if last > first else "no token"
        said = f"ring {number}, {_seconds(ring.begin_us)} to {_seconds(ring.end_us)}: {drew}; "
        said += f"round trips {', '.join(ring.rtts)}" if any(rtt != "not signed" for rtt in ring.rtts) else "not signed"
        if ring.reason or ring.lost:
            names = ", ".join(short(key) for key in ring.lost) or "nobody in particular"
            said += f"; lost {names}" + (f": {printable(ring.reason)}" if ring.reason else "")
        found.append(said)
    return found


def text_timeline(line: Timeline, width: int = 100) -> str:
    """For a terminal of `width` columns: one lane a node; a bar where it was in the ring, its share of computing.

    ━ in the ring, · not in it, ✗ lost, ▼ the first token.
    """
    names = [(_layers(parts), short(key)[:8]) for key, parts in line.lanes]
    left = max([*(len(layers) for layers, _ in names), 6]) + 2
    bar = max(LEAST_BAR, width - left - 22)
    width = max(width, 24)
    rows = [headline(line)]
    for said in ring_lines(line):
        rows += textwrap.wrap(said, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    rows.append("")
    axis = [" "] * bar
    if line.first_token_us is not None:
        axis[_place(line.first_token_us, line.elapsed_us, bar)] = FIRST
    rows.append(" " * left + "".join(axis).rstrip())
    for (layers, name), (key, parts) in zip(names, line.lanes, strict=True):
        share = _share(line, parts)
        rows.append(f"{layers:<{left}}{_bar(line, key, parts, bar)}  {name}  {share}".rstrip())
    end = _seconds(line.elapsed_us)
    rows.append(f"{'':<{left}}0{end:>{bar - 1}}")
    return "\n".join(rows) + "\n"


def svg_timeline(line: Timeline, title: str) -> str:
    """The same as a self-contained SVG (no scripts, no fonts, nothing fetched)."""
    told = [headline(line), *ring_lines(line)]
    drawn, height = timeline_shapes(line)
    head = svg_head(WIDTH, height, title, told)
    return "\n".join([*head, svg_text(20, 28, title, size=15), *drawn, "</svg>"]) + "\n"


def timeline_shapes(line: Timeline) -> tuple[list[str], int]:
    """What is under the drawing's title, and how high all of it is."""
    told = [headline(line), *ring_lines(line)]
    notes = [row for note in told for row in textwrap.wrap(note, NOTE)]
    bottom = TOP + LANE * len(line.lanes)
    parts: list[str] = []
    for number, ring in enumerate(line.rings):
        x = _x(line, ring.begin_us)
        parts.append(f'<path d="M{x:.1f} {TOP - 18}V{bottom}" stroke="{RED if number else FAINT}" stroke-width="1"/>')
        parts.append(svg_text(x + 4, TOP - 8, f"ring {number}", FAINT))
    for row, (key, of) in enumerate(line.lanes):
        parts += _lane(line, key, of, TOP + LANE * row)
    if line.first_token_us is not None:
        x = _x(line, line.first_token_us)
        parts.append(f'<path d="M{x - 5:.1f} {TOP - 4}h10l-5 8z" fill="{INK}"><title>first token</title></path>')
    parts.append(svg_text(LEFT, bottom + 14, "0", FAINT))
    parts.append(svg_text(LEFT + BARS, bottom + 14, _seconds(line.elapsed_us), FAINT, anchor="end"))
    parts += [svg_text(20, bottom + 40 + 18 * row, note, FAINT) for row, note in enumerate(notes)]
    return parts, bottom + 40 + 18 * len(notes)


def _lane(line: Timeline, key: str, parts: Sequence[LanePart], top: float) -> list[str]:
    drawn = [svg_text(20, top + 18, f"{_layers(parts)}  {short(key)[:8]}")]
    for part in parts:
        ring = line.rings[part.ring]
        x, end = _x(line, ring.begin_us), _x(line, ring.end_us)
        drawn.append(
            f'<rect x="{x:.1f}" y="{top + 4}" width="{max(1.0, end - x):.1f}" height="{LANE - 10}" fill="{BAR}"/>'
        )
        if part.compute_us is not None:
            busy = (end - x) * min(1.0, part.compute_us / max(1, ring.end_us - ring.begin_us))
            said = f"{_seconds(part.compute_us)} of computing in ring {part.ring}"
            drawn.append(
                f'<rect x="{x:.1f}" y="{top + 10}" width="{busy:.1f}" height="{LANE - 22}" fill="{BUSY}">'
                f"<title>{said}</title></rect>"
            )
        if key in ring.lost:
            drawn.append(svg_text(end - 4, top + 19, LOST, RED, 14, anchor="end"))
    drawn.append(svg_text(LEFT + BARS + 8, top + 18, _share(line, parts), FAINT))
    return drawn


def _bar(line: Timeline, key: str, parts: Sequence[LanePart], room: int) -> str:
    cells = [APART] * room
    for part in parts:
        ring = line.rings[part.ring]
        begin, end = (_place(moment, line.elapsed_us, room) for moment in (ring.begin_us, ring.end_us))
        cells[begin : end + 1] = IN_RING * (end + 1 - begin)
        if key in ring.lost:
            cells[end] = LOST
    return "".join(cells)


def _place(moment: int, whole: int, room: int) -> int:
    return min(room - 1, max(0, moment) * room // max(1, whole))


def _x(line: Timeline, moment: int) -> float:
    return LEFT + BARS * min(1.0, max(0, moment) / max(1, line.elapsed_us))


def _share(line: Timeline, parts: Sequence[LanePart]) -> str:
    """Of the time in the ring, how much it computed by its own word."""
    known = [(part.compute_us, line.rings[part.ring]) for part in parts if part.compute_us is not None]
    whole = sum(ring.end_us - ring.begin_us for _, ring in known)
    return f"{sum(us for us, _ in known) / whole:.0%} busy" if whole > 0 else "no end"


def _layers(parts: Sequence[LanePart]) -> str:
    return ", ".join(dict.fromkeys(f"layers {part.first}-{part.last - 1}" for part in parts))


def _seconds(us: int) -> str:
    return f"{us / 1e6:.2f} s" if us < 10_000_000 else f"{us / 1e6:.1f} s"
