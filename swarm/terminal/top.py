"""`swarm top`: a swarm while it works, from one snapshot after another.

`Watch` turns snapshots (`swarm.base.swarm_state`) into what changed and how busy each node has been;
`render_top` draws it. Both are pure: the clock is an argument.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from swarm.base.swarm_state import Span, SwarmState
from swarm.planner.fleet import say_layers
from swarm.terminal.status import STYLES, coverage_bar

KEPT_LOOKS = 40
KEPT_NEWS = 64
BARS = " ▁▂▃▄▅▆▇█"


class Watch:
    """What was seen so far. `looks`: of each node (by id), its runs at the last looks, oldest first."""

    def __init__(self) -> None:
        self.seen: SwarmState | None = None
        self.looks: dict[str, deque[int]] = {}
        self.news: deque[tuple[float, str, str]] = deque(maxlen=KEPT_NEWS)
        self._seen: dict[str, tuple[str, Span | None]] = {}
        self._covered: bool | None = None

    def take(self, seen: SwarmState, now: float) -> None:
        """One more snapshot, at `now` (Unix seconds)."""
        first = self.seen is None
        self.seen = seen
        nodes = {node.id: node for node in seen.nodes}
        for key, node in nodes.items():
            self.looks.setdefault(key, deque(maxlen=KEPT_LOOKS)).append(node.sessions)
            is_now = (node.state, node.layers)
            before = self._seen.get(key)
            if before != is_now and not first:
                self.news.append((now, *_told(node.short, before, is_now)))
            self._seen[key] = is_now
        for key in [key for key in self._seen if key not in nodes]:
            self.news.append((now, f"{key[:8]} is forgotten", "yellow"))
            del self._seen[key], self.looks[key]
        covered = seen.phase == "serving"
        if self._covered is not None and covered != self._covered:
            lost = f"{_missing(seen) or 'every layer'}: held by nobody"
            said = ("every layer is held again", "green") if covered else (lost, "red")
            self.news.append((now, *said))
        self._covered = covered


def _missing(seen: SwarmState) -> str:
    missing = seen.missing
    return say_layers(missing) if missing else ""


def _told(name: str, before: tuple[str, Span | None] | None, now: tuple[str, Span | None]) -> tuple[str, str]:
    """A change of one node in words, and its colour."""
    state, span = now
    layers = f", layers {span[0]}-{span[1] - 1}" if span is not None else ""
    style = STYLES.get(state, "")
    if before is None:
        return f"{name} came: {state}{layers}", style
    if before[0] != state:
        return f"{name} is {state}{layers if state == 'serving' else ''}", style
    return f"{name} moved to{layers[1:]}" if layers else f"{name} gave its layers up", "yellow"


def sparkline(values: Sequence[int], most: int) -> str:
    """One character a value from 0 to `most`."""
    return "".join(BARS[min(8, -(-8 * int(value) // max(1, most)))] for value in values)


def render_top(watch: Watch, width: int, height: int) -> RenderableType:
    """The view for a terminal of `width` columns and `height` lines; news get what lines are left."""
    seen = watch.seen
    if seen is None:
        return Text("waiting for the first look …", "dim")
    up = sum(node.standing == "up" for node in seen.nodes)
    runs = sum(node.sessions for node in seen.nodes if node.standing == "up")
    head = Text.assemble(
        (f"swarm {seen.swarm[:8]}", "bold"),
        f"  {up} {'node' if up == 1 else 'nodes'} up  ",
        ("covered", "green") if seen.phase == "serving" else (f"missing {_missing(seen) or 'all'}", "bold red"),
        f"  pass {seen.route.pass_ms:.0f} ms" if seen.route is not None else "",
        f"  {runs} run parts  {seen.model}",
    )
    head.truncate(width, overflow="ellipsis")
    room = max(16, width)
    cover = Text("\n".join(coverage_bar(seen.held, room)), "green") if seen.held else Text("no layers", "dim")
    fixed = 4 + len(seen.nodes) + len(cover.plain.splitlines())
    parts: list[RenderableType] = [head, cover, Text(), _table(watch, seen, width)]
    left = max(0, height - fixed - 3)
    for when, said, style in list(watch.news)[-left:] if left else []:
        line = Text(f"{time.strftime('%H:%M:%S', time.localtime(when))}  {said}", style)
        line.truncate(width, overflow="ellipsis")
        parts.append(line)
    parts.append(Text("Ctrl-C leaves", "dim"))
    return Group(*parts)


def _table(watch: Watch, seen: SwarmState, width: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("node", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("layers", "rtt", "queue", "runs"):
        table.add_column(name, justify="right", no_wrap=True)
    busy = max(0, min(KEPT_LOOKS, width - 62))
    if busy >= 8:
        table.add_column("busy", no_wrap=True, width=busy)
    if width >= 60:
        table.add_column("memory", justify="right", no_wrap=True)
    most = max((max(of, default=0) for of in watch.looks.values()), default=0)
    for node in sorted(seen.nodes, key=lambda node: (node.layers or (1 << 30, 0), node.short)):
        span, here = node.layers, node.id == seen.here
        cells: list[Text | str] = [
            Text(node.short, "bold" if here else ""),
            Text(node.state, STYLES.get(node.state, "")),
            f"{span[0]}-{span[1] - 1}" if span is not None else "-",
            "-" if node.rtt_ms is None or here else f"{node.rtt_ms:.0f} ms",
            f"{node.queue_ms:.0f} ms",
            str(node.sessions),
        ]
        if busy >= 8:
            cells.append(Text(sparkline(list(watch.looks[node.id])[-busy:], most), "cyan"))
        if width >= 60:
            cells.append(f"{1 - node.kv_free / node.kv_capacity:.0%}" if node.kv_capacity else "-")
        table.add_row(*cells)
    return table
