"""A verdict as people read it: the text of `swarm verify`, for terminals of any width."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from receipts.check.checks import ms, own_spans, short
from receipts.check.run import Epoch, ReceiptRun
from receipts.check.verdict import Claim, Standing, Verdict
from receipts.format.errors import printable

LABEL = 13
NARROW = 72
"""Below this width the label stands on a line of its own."""

_HEADS = {
    Standing.PROVEN: "VERIFIED",
    Standing.COSIGNED: "CO-SIGNED",
    Standing.WITNESSED: "WITNESSED",
    Standing.CLAIMED: "CLAIMED",
    Standing.NOT_CHECKED: "NOT CHECKED",
}
_OWN_SECTION = ("replay", "audit")
_PER_EDGE = {"rtt": "RTT", "traffic": "traffic", "link": "link"}
_SELF_NAMED = (
    "signatures",
    "layers",
    "own layers",
    "edges",
    "output",
    "tokens",
    "recompute",
    "dtype",
    "counters",
    "previous receipt",
)
TIE = "\u00a0"
"""A space at which no line is broken."""
RTT_REMARK = "(an upper bound on distance, not a location)"


def text_report(verdict: Verdict, width: int = 100) -> str:
    """The report, one section per standing; every line at most `width` columns (24 at least)."""
    width = max(width, 24)
    sections: list[tuple[str, list[str]]] = []
    if verdict.run is not None:
        sections.append(("RING", _ring(verdict.run, width - (2 if width < NARROW else LABEL))))
    for standing in Standing:
        claims = [c for c in verdict.claims if c.standing is standing and c.subject not in _OWN_SECTION]
        if claims:
            sections.append((_HEADS[standing], _items(claims)))
    for subject in _OWN_SECTION:
        claims = [c for c in verdict.claims if c.subject == subject]
        if claims:
            sections.append((subject.upper(), [_named(claim) for claim in claims]))
    sections.append(_result(verdict))
    return "\n".join(line for head, items in sections for line in _section(head, items, width)) + "\n"


def _result(verdict: Verdict) -> tuple[str, list[str]]:
    if verdict.refusal is not None:
        return "REFUSED", [printable(verdict.line), f"({verdict.refusal.meaning}; exit code {verdict.exit_code})"]
    return "RESULT", [printable(verdict.line)]


def _section(head: str, items: Sequence[str], width: int) -> list[str]:
    narrow = width < NARROW
    indent = 2 if narrow else LABEL
    lines: list[str] = []
    for item in items:
        wrapped = textwrap.wrap(item, width - indent, subsequent_indent="  ", break_on_hyphens=False)
        lines += [line.replace(TIE, " ").rstrip() for line in wrapped or [""]]
    if narrow:
        return [head, *(" " * indent + line for line in lines)]
    return [f"{head if number == 0 else '':<{LABEL}}{line}" for number, line in enumerate(lines)]


def _tied(text: str) -> str:
    """Safe to print, and never broken at a line's end."""
    return printable(text).replace(" ", TIE)


def _items(claims: Sequence[Claim]) -> list[str]:
    """One line per claim; what is said of every node or edge alike is joined."""
    items: list[str] = []
    grouped: dict[tuple[str, str], list[Claim]] = {}
    for claim in sorted(claims, key=lambda claim: claim.subject == "traffic"):
        grouped.setdefault((claim.subject, "" if claim.subject in _PER_EDGE else claim.text), []).append(claim)
    for (subject, _), group in grouped.items():
        if subject in _PER_EDGE:
            remark = f"   {RTT_REMARK}" if subject == "rtt" and group[0].standing is Standing.COSIGNED else ""
            items.append(f"{_PER_EDGE[subject]} " + "   ".join(_tied(claim.text) for claim in group) + remark)
        elif group[0].about:
            names = ", ".join(short(claim.about) for claim in group)
            items.append(printable(f"{subject} {names}: {group[0].text}"))
        else:
            items.append(printable(group[0].text if subject in _SELF_NAMED else f"{subject}: {group[0].text}"))
    return items


def _named(claim: Claim) -> str:
    return printable(f"{short(claim.about)}: {claim.text}" if claim.about else claim.text)


def _ring(run: ReceiptRun, room: int) -> list[str]:
    """The ring of the last epoch as a table: part, key, device, and the round trip from the one before.

    Columns stand under each other where the table has room, in columns of text.
    """
    epoch = run.last
    own = f"{own_spans(run.order)} (claimed)" if run.order.own_layers else ""
    rows = [("requester", short(run.requester), own, f"{edge_rtt(epoch, len(epoch.plan))} from the tail")]
    for index, stage in enumerate(epoch.plan):
        accept = epoch.accepts.get(stage.node)
        device = f"{printable(accept.hardware.device)[:32]} (claimed)" if accept is not None else "did not accept"
        rows.append((f"layers {stage.first}-{stage.last - 1}", short(stage.node), device, edge_rtt(epoch, index)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    if sum(widths) + 6 + max(len(row[3]) for row in rows) > room:
        return [" ".join(cell for cell in row if cell) for row in rows]
    return [
        "  ".join(cell.ljust(size) for cell, size in zip(row, (*widths, 0), strict=True))
        .rstrip()
        .replace("  ", TIE * 2)
        for row in rows
    ]


def edge_rtt(epoch: Epoch, index: int) -> str:
    """Least round trip by sender/receiver as both signed it, or what is known instead."""
    edge = epoch.edges.get((index, "sender")) or epoch.edges.get((index, "receiver"))
    if edge is None:
        return "not signed"
    return f"{ms(edge.sender_rtt.min_us)}/{ms(edge.receiver_rtt.min_us)} ms"
