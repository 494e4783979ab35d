"""What `swarm top` tells of one snapshot after another, and how it fits a terminal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from swarm.base.swarm_state import NodeState, RouteState, SwarmState
from swarm.terminal.top import Watch, layer_bar, render_top, sparkline


def node(key: str, layers: tuple[int, int] | None = None, **more: Any) -> NodeState:
    return replace(NodeState(key * 32, layers=layers, rtt_ms=12.5, kv_free=300, kv_capacity=400), **more)


def snapshot(*nodes: NodeState) -> SwarmState:
    seen = SwarmState("ee" * 32, "ab" * 32, False, "tiny", n_layers=8, nodes=nodes)
    return seen if seen.missing else replace(seen, route=RouteState((), 1.0, None, 42.0))


def said(watch: Watch) -> list[str]:
    return [text for _, text, _ in watch.news]


def drawn(watch: Watch, width: int = 80, height: int = 24) -> str:
    console = Console(width=width, height=height, color_system=None)
    with console.capture() as capture:
        console.print(render_top(watch, width, height))
    return capture.get()


def test_the_first_look_is_no_news() -> None:
    watch = Watch()
    assert "waiting" in drawn(watch)
    watch.take(snapshot(node("a", (0, 4)), node("b", (4, 8))), 1.0)
    assert said(watch) == []


def test_changes_are_told_once() -> None:
    watch = Watch()
    watch.take(snapshot(node("a", (0, 4)), node("b", (4, 8))), 1.0)
    later = snapshot(node("a", (0, 4)), node("b", (4, 8), standing="down"))
    watch.take(later, 2.0)
    watch.take(later, 3.0)
    assert said(watch) == ["bbbbbbbb is down", "layers 4-7: held by nobody"]
    watch.take(snapshot(node("a", (0, 8)), node("c", (4, 8))), 4.0)
    assert said(watch)[2:] == [
        "aaaaaaaa moved to layers 0-7",
        "cccccccc came: serving, layers 4-7",
        "bbbbbbbb is forgotten",
        "every layer is held again",
    ]


def test_what_a_node_did_is_a_line_of_bars() -> None:
    watch = Watch()
    for runs in (0, 1, 2, 4):
        watch.take(snapshot(node("a", (0, 8), sessions=runs)), float(runs))
    assert list(watch.looks["a" * 32]) == [0, 1, 2, 4]
    assert sparkline([0, 1, 2, 4], 4) == " ▂▄█" and sparkline([], 0) == "" and sparkline([9], 4) == "█"
    text = drawn(watch, 100)
    assert " ▂▄█" in text and "25%" in text and "pass 42 ms" in text


@pytest.mark.parametrize(("width", "height"), [(24, 8), (40, 12), (60, 24), (80, 24), (160, 50)])
def test_it_fits_the_terminal(width: int, height: int) -> None:
    watch = Watch()
    for turn in range(80):
        watch.take(snapshot(*(node(key, (0, 8), sessions=turn % 3) for key in "abc"[: 1 + turn % 3])), float(turn))
    lines = drawn(watch, width, height).splitlines()
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= max(height, 9)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("count", [1, 3, 12, 60])
def test_numbers_are_whole_and_who_is_lost_is_in_sight(width: int, count: int) -> None:
    """At no usual width is a number, a state or what is missing cut off, without colour too."""
    watch, layers = Watch(), 60
    spans = [(i * layers // count, (i + 1) * layers // count) for i in range(count)]
    names = [f"{i:02d}host" for i in range(count)]
    nodes = [
        replace(node("a", span), id=f"{i:02d}" + "c" * 62, name=names[i], rtt_ms=100.0 + i, queue_ms=12.0)
        for i, span in enumerate(spans)
    ]
    seen = replace(snapshot(*nodes), n_layers=layers)
    watch.take(seen, 1.0)
    lost = count - 1
    nodes[lost] = replace(nodes[lost], standing="down")
    watch.take(replace(seen, nodes=tuple(nodes), route=None), 2.0)
    text = drawn(watch, width, 24)
    assert len(text.splitlines()) <= 24 and "Ctrl-C leaves" in text and f"{names[lost]} is down" in text
    (row,) = [line for line in text.splitlines() if line.startswith(names[lost])]
    span = spans[lost]
    assert "down" in row and f"{span[0]}-{span[1] - 1}" in row
    assert "missing layer" in text
    assert "…" not in "".join(line for line in text.splitlines() if "host" in line)
    assert (f"{100 + lost} ms" in row) == (width >= 50) and ("━" in row) == (width >= 120)
    assert ("and" in text and "more serving" in text) == (count == 60)


def test_where_layers_lie() -> None:
    assert layer_bar((0, 4), 8, 8) == "━━━━····" and layer_bar((7, 8), 8, 4) == "···━"
    assert layer_bar(None, 8, 4) == "····" and layer_bar((3, 4), 100, 5) == "━····"
