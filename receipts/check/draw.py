"""A verdict as a picture: the ring with layers, devices and round trips, and the standing of each claim (SVG)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from html import escape

from receipts.check.checks import edge_label, own_spans, short
from receipts.check.report import edge_rtt
from receipts.check.run import ReceiptRun
from receipts.check.verdict import Claim, Standing, Verdict
from receipts.format.errors import printable

COLOURS = {
    Standing.PROVEN: "#1a7f37",
    Standing.COSIGNED: "#0969da",
    Standing.WITNESSED: "#8250df",
    Standing.CLAIMED: "#9a6700",
    Standing.NOT_CHECKED: "#6e7781",
}
RED = "#cf222e"
INK, FAINT, PAPER, BOX_FILL = "#1f2328", "#59636e", "#ffffff", "#f6f8fa"
DARK = {
    PAPER: "#131513",
    BOX_FILL: "#1f2328",
    INK: "#e8e8e1",
    FAINT: "#a1a59b",
    RED: "#ff8d7d",
    COLOURS[Standing.PROVEN]: "#6fcf8f",
    COLOURS[Standing.COSIGNED]: "#6cb6ff",
    COLOURS[Standing.WITNESSED]: "#c297ff",
    COLOURS[Standing.CLAIMED]: "#e3b457",
    COLOURS[Standing.NOT_CHECKED]: "#a1a59b",
    "#ddf4ff": "#16334a",
}
"""Each colour of a drawing on a dark page."""
_DARK = (
    "@media (prefers-color-scheme: dark){"
    + "".join(f'[fill="{light}"]{{fill:{dark}}}[stroke="{light}"]{{stroke:{dark}}}' for light, dark in DARK.items())
    + "}"
)
BOX = (178, 66)
PANEL = 430
LINE = 17
WRAP = 56
_SHOWN = (
    "signatures", "layers", "own layers", "edges", "replay", "audit", "tokens", "speed", "output", "rtt", "witness",
    "hardware",
)  # fmt: skip


def svg_report(verdict: Verdict) -> str:
    """A self-contained SVG (no scripts, no fonts, nothing fetched)."""
    run = verdict.run
    radius = _radius(len(run.last.plan) + 1) if run is not None else 0
    side = 2 * radius + BOX[0] + 60 if run is not None else 0
    panel = _panel(verdict, side + 20)
    height = max(side + 20, len(panel) * LINE + 90, 200)
    width = side + PANEL + 40
    told = [f"{claim.standing.value}: {claim.subject}, {claim.text}" for claim in verdict.claims]
    parts = [*svg_head(width, height, verdict.line, told), _title(verdict, width)]
    if run is not None:
        parts += _ring(verdict, run, side / 2, 44 + side / 2 - 20, radius)
    return "\n".join([*parts, *panel, "</svg>"]) + "\n"


def _radius(count: int) -> int:
    """Wide enough for the boxes to stand apart on the circle."""
    return max(190, math.ceil(count * (BOX[0] + 90) / (2 * math.pi)))


def _title(verdict: Verdict, width: int) -> str:
    colour = RED if verdict.refusal is not None else COLOURS[Standing.PROVEN] if not verdict.exit_code else "#9a6700"
    line = f"REFUSED  {verdict.line}" if verdict.refusal is not None else verdict.line
    lines = textwrap.wrap(printable(line), width // 10, max_lines=2, placeholder=" …")
    return "\n".join(svg_text(20, 26 + 20 * row, text, colour, 15, 600) for row, text in enumerate(lines))


def svg_head(width: int, height: int, title: str, told: Sequence[str] = ()) -> list[str]:
    """How a drawing of that many pixels begins; `</svg>` ends it. `told`: what it shows, for whoever cannot see it.

    Colours are those of a light page; where the reader's is dark, one style gives each its counterpart.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="ui-sans-serif, system-ui, sans-serif" font-size="12" role="img" aria-labelledby="title" '
        'aria-describedby="told">',
        f'<title id="title">{escape(printable(title))}</title>',
        f'<desc id="told">{escape(printable(". ".join(told)))}</desc>',
        f"<style>{_DARK}</style>",
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
    ]
    return parts


def svg_text(
    x: float, y: float, text: str, colour: str = INK, size: int = 12, weight: int = 400, anchor: str = "start"
) -> str:
    """A line of text that is safe to draw, whoever wrote it."""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(printable(text))}</text>'
    )


def _ring(verdict: Verdict, run: ReceiptRun, x: float, y: float, radius: int) -> list[str]:
    epoch = run.last
    count = len(epoch.plan) + 1
    angles = [-math.pi / 2 + index * 2 * math.pi / count for index in range(count)]
    parts: list[str] = []
    for index, angle in enumerate(angles):
        parts += _edge(verdict, run, index, x, y, radius, angle, angle + 2 * math.pi / count)
    said = own_spans(run.order) if run.order.own_layers else f"{run.close.new_tokens} tokens, {run.close.outcome}"
    drawn = verdict.standing_of("replay") or verdict.standing_of("tokens") or Standing.CLAIMED
    boxes = [(run.requester, "requester", said, drawn)]
    for stage in epoch.plan:
        accept = epoch.accepts.get(stage.node)
        device = accept.hardware.device if accept is not None else "did not accept"
        # A replay shows what the tokens should be, and nothing of who computed them.
        audited = verdict.standing_of("audit", stage.node) is Standing.PROVEN
        standing = Standing.PROVEN if audited else Standing.CLAIMED
        boxes.append((stage.node, f"layers {stage.first}-{stage.last - 1}", device, standing))
    for angle, (key, role, device, standing) in zip(angles, boxes, strict=True):
        parts += _box(x + radius * math.cos(angle), y + radius * math.sin(angle), key, role, device, standing)
    return parts + _centre(run, x, y)


def _centre(run: ReceiptRun, x: float, y: float) -> list[str]:
    lines = [
        (f"{run.order.model.name[:34]} (claimed)", INK),
        (f"{run.order.dtype}, {run.order.wire} on the wire", FAINT),
    ]
    for epoch in run.epochs[1:]:
        names = ", ".join(short(key) for key in epoch.lost) or "a node"
        lines.append((f"lost {names} at position {epoch.first_position}", RED))
    top = y - (len(lines) - 1) * LINE / 2 + 4
    return [svg_text(x, top + i * LINE, text[:44], colour, anchor="middle") for i, (text, colour) in enumerate(lines)]


def _edge(
    verdict: Verdict, run: ReceiptRun, index: int, x: float, y: float, radius: int, start: float, stop: float
) -> list[str]:
    epoch = run.last
    standing = verdict.standing_of("rtt", edge_label(epoch, index)) or Standing.NOT_CHECKED
    colour = COLOURS[standing]
    dashed = ' stroke-dasharray="5 5"' if standing is Standing.NOT_CHECKED else ""
    ends = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in (start, stop)]
    middle = (start + stop) / 2
    mid_x, mid_y = x + radius * math.cos(middle), y + radius * math.sin(middle)
    turn = math.degrees(middle) + 90
    large = int(stop - start > math.pi)
    return [
        f'<path d="M{ends[0][0]:.1f} {ends[0][1]:.1f}A{radius} {radius} 0 {large} 1 {ends[1][0]:.1f} {ends[1][1]:.1f}" '
        f'fill="none" stroke="{colour}" stroke-width="2"{dashed}/>',
        f'<path d="M-6 -5L6 0L-6 5Z" fill="{colour}" '
        f'transform="translate({mid_x:.1f} {mid_y:.1f}) rotate({turn:.1f})"/>',
        svg_text(
            mid_x - 46 * math.cos(middle),
            mid_y - 47 * math.sin(middle) + 4,
            edge_rtt(epoch, index),
            colour,
            size=11,
            anchor="middle",
        ),
    ]


def _box(x: float, y: float, key: str, role: str, device: str, standing: Standing) -> list[str]:
    wide, high = BOX
    left, top = x - wide / 2, y - high / 2
    colour = COLOURS[standing]
    name = device if len(device) <= 27 else device[:26] + "…"
    return [
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide}" height="{high}" rx="8" fill="{BOX_FILL}" '
        f'stroke="{colour}" stroke-width="1.5"/>',
        svg_text(x, top + 21, role, INK, 13, 600, "middle"),
        svg_text(x, top + 38, short(key), FAINT, 11, 400, "middle"),
        svg_text(x, top + 55, name, COLOURS[Standing.CLAIMED] if role != "requester" else FAINT, 11, 400, "middle"),
    ]


def _panel(verdict: Verdict, left: int) -> list[str]:
    parts: list[str] = []
    y = 64
    for standing in Standing:
        claims = [claim for claim in verdict.claims if claim.standing is standing]
        if not claims:
            continue
        parts.append(svg_text(left, y, standing.value.upper(), COLOURS[standing], 12, 700))
        y += LINE
        for line in _lines(claims):
            parts.append(svg_text(left + 12, y, line, INK))
            y += LINE
        y += 6
    return parts


def _lines(claims: Sequence[Claim]) -> list[str]:
    items: list[str] = []
    for subject in sorted({claim.subject for claim in claims}, key=_rank):
        if subject in ("rtt", "traffic"):
            count = sum(claim.subject == subject for claim in claims)
            items.append(f"{subject} of {count} edge{'s' * (count != 1)}")
            continue
        texts = dict.fromkeys(claim.text for claim in claims if claim.subject == subject)
        named = "" if subject in ("signatures", "layers", "own layers", "edges", "tokens", "output") else f"{subject}: "
        shown = list(texts)[:6]
        more = f" and {len(texts) - 6} more" if len(texts) > 6 else ""
        items += textwrap.wrap(printable(named + "; ".join(shown) + more), WRAP, subsequent_indent="  ")
    return items


def _rank(subject: str) -> tuple[int, str]:
    return (_SHOWN.index(subject) if subject in _SHOWN else len(_SHOWN), subject)
