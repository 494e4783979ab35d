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

from swarm.base.swarm_state import NodeState, Span, SwarmState
from swarm.planner.fleet import say_layers
from swarm.terminal.status import STYLES, coverage_bar

KEPT_LOOKS = 40
KEPT_NEWS = 64
LEAST_NEWS = 3
"""Lines kept for what happened, before nodes are left out."""
MIDDLE, WIDE = 50, 60
"""Columns from which on round trips, and memory, have room."""
MOST_BUSY, MOST_PLACE = 24, 48
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
    room = max(16, width)
    cover = Text("\n".join(coverage_bar(seen.held, room)), "green") if seen.held else Text("no layers", "dim")
    head = _head(seen, width)
    around = len(head) + len(cover.plain.splitlines()) + 3  # a blank line, the table's head, how to leave
    rows = max(2, height - around - min(LEAST_NEWS, len(watch.news)) - 1)
    shown = _chosen(seen.nodes, rows)
    parts: list[RenderableType] = [*head, cover, Text(), _table(watch, seen, shown, width)]
    hidden = len(seen.nodes) - len(shown)
    if hidden:
        parts.append(Text(f"and {hidden} more serving; a taller terminal shows them"[:width], "dim"))
    left = max(0, height - around - len(shown) - bool(hidden))
    for when, said, style in list(watch.news)[-left:] if left else []:
        line = Text(f"{time.strftime('%H:%M:%S', time.localtime(when))}  {said}", style)
        line.truncate(width, overflow="ellipsis")
        parts.append(line)
    parts.append(Text("Ctrl-C leaves", "dim"))
    return Group(*parts)


def _head(seen: SwarmState, width: int) -> list[Text]:
    """What matters most first: on a narrow terminal the rest has a line of its own, and then is cut."""
    up = sum(node.standing == "up" for node in seen.nodes)
    runs = sum(node.sessions for node in seen.nodes if node.standing == "up")
    covered = seen.phase == "serving"
    whole = ("covered", "green") if covered else (f"missing {_missing(seen) or 'all'}", "bold red")
    first = Text.assemble((f"swarm {seen.swarm[:8]}", "bold"), f"  {up} {'node' if up == 1 else 'nodes'} up")
    second = Text(f"pass {seen.route.pass_ms:.0f} ms  " if seen.route is not None else "")
    second.append(f"{runs} run parts  {seen.model}")
    if width >= WIDE:
        lines = [Text.assemble(first, "  ", whole, "  ", second)]
    else:
        lines = [first, Text.assemble(whole, "  ", second)]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _chosen(nodes: Sequence[NodeState], rows: int) -> list[NodeState]:
    """The nodes that there are lines for, in order of layers; of too many, those that do not serve come first."""
    ordered = sorted(nodes, key=lambda node: (node.layers or (1 << 30, 0), node.short))
    if len(ordered) <= rows:
        return ordered
    kept = {node.id for node in sorted(ordered, key=lambda node: node.serves)[:rows]}
    return [node for node in ordered if node.id in kept]


def layer_bar(span: Span | None, layers: int, room: int) -> str:
    """Where [first, last) lies among `layers`, in `room` characters; at least one where there is any."""
    if span is None or not layers:
        return "·" * room
    first = min(room - 1, span[0] * room // layers)
    last = max(first + 1, min(room, -(-span[1] * room // layers)))
    return "·" * first + "━" * (last - first) + "·" * (room - last)


def _table(watch: Watch, seen: SwarmState, nodes: Sequence[NodeState], width: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("node", no_wrap=True, min_width=min(8, width // 4))
    table.add_column("state", no_wrap=True, min_width=min(7, width // 4))
    table.add_column("layers", justify="right", no_wrap=True, min_width=min(5, width // 5))
    spare = width - 62  # what the columns of numbers leave
    busy = min(MOST_BUSY, spare) if spare >= 8 else 0
    place = min(seen.n_layers, MOST_PLACE, spare - busy - 1) if spare - busy > 12 else 0
    if place:
        table.add_column("where", no_wrap=True, width=place)
    if width >= MIDDLE:
        table.add_column("rtt", justify="right", no_wrap=True)
        table.add_column("queue", justify="right", no_wrap=True)
    table.add_column("runs", justify="right", no_wrap=True, min_width=min(4, width // 6))
    if busy:
        table.add_column("busy", no_wrap=True, width=busy)
    if width >= WIDE:
        table.add_column("memory", justify="right", no_wrap=True)
    most = max((max(of, default=0) for of in watch.looks.values()), default=0)
    for node in nodes:
        span, here = node.layers, node.id == seen.here
        style = STYLES.get(node.state, "")
        cells: list[Text | str] = [
            Text(node.short, "bold" if here else ""),
            Text(node.state, style),
            f"{span[0]}-{span[1] - 1}" if span is not None else "-",
        ]
        if place:
            cells.append(Text(layer_bar(span, seen.n_layers, place), style))
        if width >= MIDDLE:
            cells.append("-" if node.rtt_ms is None or here else f"{node.rtt_ms:.0f} ms")
            cells.append(f"{node.queue_ms:.0f} ms")
        cells.append(str(node.sessions))
        if busy:
            cells.append(Text(sparkline(list(watch.looks[node.id])[-busy:], most), "cyan"))
        if width >= WIDE:
            cells.append(f"{1 - node.kv_free / node.kv_capacity:.0%}" if node.kv_capacity else "-")
        table.add_row(*cells)
    return table
