"""Pictures of a benchmark's summary, two files per distance: speed-up per class and mode, and acceptance by depth.

Needs the extra `plots`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swarm.base.errors import UsageError

MOST_DEPTH = 16
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#000000", "#88ccaa")


def plot(summary: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `speedup-rttN.png` and `depth-rttN.png` for each distance and return the paths.

    Raises `UsageError` without matplotlib.
    """
    try:
        import matplotlib
    except ImportError as exc:
        raise UsageError("plots need matplotlib; install it with: pip install 'wanswarm[plots]'") from exc
    matplotlib.use("Agg")  # no window system is needed to write a file
    distances = sorted({cell["rtt_ms"] for cell in summary["cells"]})
    draw = (_plot_distance, _plot_depths)
    return [one(summary["cells"], rtt_ms, folder) for rtt_ms in distances for one in draw]


def _plot_distance(cells: Sequence[Mapping[str, Any]], rtt_ms: float, folder: Path) -> Path:
    from matplotlib.figure import Figure

    here = [cell for cell in cells if cell["rtt_ms"] == rtt_ms and cell["speculation"] != "plain"]
    kinds = list(dict.fromkeys(cell["kind"] for cell in here))
    settings = list(dict.fromkeys((cell["speculation"], cell["draft"]) for cell in here))
    speedups = {(cell["kind"], cell["speculation"], cell["draft"]): cell["over_plain"] for cell in here}
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(settings))
    for place, (mode, draft) in enumerate(settings):
        heights = [speedups.get((kind, mode, draft), 0.0) for kind in kinds]
        left = [at - 0.4 + width * (place + 0.5) for at in range(len(kinds))]
        bars = axes.bar(left, heights, width, label=f"{mode}, {draft}", color=COLOURS[place % len(COLOURS)])
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_ylabel("tokens per second over plain")
    axes.set_title(f"Every edge with a round trip of {rtt_ms:g} ms")
    axes.legend(fontsize=8, ncols=2)
    path = folder / f"speedup-rtt{rtt_ms:g}.png"
    figure.savefig(path, dpi=130)
    return path


def _plot_depths(cells: Sequence[Mapping[str, Any]], rtt_ms: float, folder: Path) -> Path:
    from matplotlib.figure import Figure

    here = [cell for cell in cells if cell["rtt_ms"] == rtt_ms and cell.get("by_depth")]
    kinds = list(dict.fromkeys(cell["kind"] for cell in here))
    figure = Figure(figsize=(3.2 * max(1, len(kinds)), 3.4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, max(1, len(kinds)), sharey=True, squeeze=False)[0], kinds, strict=False):
        for place, cell in enumerate(one for one in here if one["kind"] == kind):
            depths = cell["by_depth"][:MOST_DEPTH]
            name = f"{cell['speculation']}, {cell['draft']}"
            axes.plot(range(1, len(depths) + 1), depths, label=name, color=COLOURS[place % len(COLOURS)], marker=".")
        axes.set_title(kind)
        axes.set_xlabel("tokens below the last known one")
    figure.axes[0].set_ylabel("share of drafted rows accepted")
    if kinds:
        figure.axes[-1].legend(fontsize=6)
    path = folder / f"depth-rtt{rtt_ms:g}.png"
    figure.savefig(path, dpi=130)
    return path
