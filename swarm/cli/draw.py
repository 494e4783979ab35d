"""The ring as a small table that fits a narrow terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarm.run.api import StageInfo  # at run time this would load torch, for every --help


def draw_ring(ring: Sequence[StageInfo]) -> str:
    """One line a stage, from the requester round to the requester: node, device, layers, ms of compute, round trip."""
    rows = [("node", "layers", "compute", "rtt", "edge", "device")]
    for stage in ring:
        rtt = f"{stage.rtt_ms:.1f} ms" if stage.rtt_ms is not None else "-"
        layers = f"{stage.layers[0]}-{stage.layers[1] - 1}"
        rows.append((stage.node[:8], layers, f"{stage.compute_ms:.1f} ms", rtt, stage.edge, stage.device[:24]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    marks = ["   ", *("┌─▶" if i == 0 else "│ ▶" for i in range(len(ring)))]
    lines = [
        f"{mark} " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for mark, row in zip(marks, rows, strict=True)
    ]
    return "\n".join([*lines, "└── the last stage answers you directly"])
