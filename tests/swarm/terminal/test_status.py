"""What `swarm status` and `swarm plan` show."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from swarm.base.swarm_state import NodeState, RouteState, StageState, SwarmState
from swarm.planner.dry_run import dry_run
from swarm.planner.fleet_file import read_fleet
from swarm.terminal.plan_table import render_plan
from swarm.terminal.status import coverage_bar, draw_ring, render_status

FLEETS = Path(__file__).parents[3] / "docs" / "fleets"


def drawn(shown: RenderableType, width: int = 60, color: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=color, color_system="standard" if color else None).print(shown)
    return out.getvalue()


ME = "ee" * 32


def node(name: str, first: int, last: int, **changes: Any) -> NodeState:
    plain = NodeState(
        name * 8,
        layers=(first, last) if last > first else None,
        device="a device with a rather long name",
        dtype="float32",
        speed_ms=(1.25, 1.5, 4.0),
        sessions=2,
        rtt_ms=41.3,
        addresses=("203.0.113.7:4242",),
        age_s=1.0,
    )
    return replace(plain, **changes)


def snapshot(nodes: list[NodeState], n_layers: int = 8, here: str = ME) -> SwarmState:
    """All layers held: with a route through all nodes."""
    stages = tuple(StageState(n.id, n.layers, None, 20.0, 5.0) for n in nodes if n.layers)
    count = range(len(nodes))
    apart = tuple(tuple(0.0 if i == j else 41.3 for j in count) for i in count)
    seen = SwarmState(here, "aabbccddeeff00112233", False, "tiny", "00", n_layers, tuple(nodes), (), apart)
    return seen if seen.missing or not stages else replace(seen, route=RouteState(stages, 20.0, None, 90.0))


def test_a_covered_swarm_reads_well_in_60_columns() -> None:
    nodes = [
        node("abcdefgh", 0, 15),
        node("ijklmnop", 15, 30),
        node("qrstuvwx", 0, 0, says="joining", claim=(0, 10)),
    ]
    text = drawn(render_status(snapshot(nodes, 30, "abcdefgh" * 8), 60))
    assert max(len(line) for line in text.splitlines()) <= 60
    assert "all 30 layers held, the least by 1" in text
    assert "abcdefgh*" in text and "0-14" in text and "0-9?" in text
    assert "you -(20 ms)-> abcdefgh [0-14] -(20 ms)-> ijklmnop [15-29]" in text.replace("\n    ", " ")
    assert "\x1b" not in text  # a pipe gets plain text


@pytest.mark.parametrize(("count", "said"), [(0, " 0 nodes up"), (1, " 1 node up"), (2, " 2 nodes up")])
def test_nodes_are_counted_in_english(count: int, said: str) -> None:
    nodes = [node(name, 0, 8) for name in ("aa11aa11", "bb22bb22")[:count]]
    assert said in drawn(render_status(snapshot(nodes), 120), 120)


def test_a_wide_terminal_shows_how_nodes_are_reached() -> None:
    nodes = [node("abcdefgh", 0, 4, edge="punched"), node("ijklmnop", 4, 8, edge="relay"), node("qrstuvwx", 0, 8)]
    lines = drawn(render_status(snapshot(nodes), 120), 120).splitlines()
    shown = {line.split()[0]: line for line in reversed(lines) if line.strip()}  # the first table that names a node
    assert "punched" in shown["abcdefgh"] and "relay" in shown["ijklmnop"] and "relay" not in shown["qrstuvwx"]
    assert max(map(len, lines)) <= 120


def test_nodes_that_compute_alike_are_told() -> None:
    nodes = [node("abcdefgh", 0, 4, fingerprint="1f" * 32), node("ijklmnop", 4, 8, fingerprint="1f" * 32)]
    assert "kernels     1f1f1f1f, all alike" in drawn(render_status(snapshot(nodes), 60))
    nodes += [node("qrstuvwx", 0, 8, fingerprint="2e" * 32), node("yzyzyzyz", 0, 8)]
    text = drawn(render_status(snapshot(nodes), 60))
    assert "kernels     1f1f1f1f  abcdefgh, ijklmnop\n            2e2e2e2e  qrstuvwx\n" in text
    assert "kernels" not in drawn(render_status(snapshot(nodes[3:]), 60))


def test_the_ring_shows_what_kind_its_edges_are() -> None:
    seen = snapshot([node("abcdefgh", 0, 4), node("ijklmnop", 4, 8)])
    assert seen.route is not None
    stages = (replace(seen.route.stages[0], edge="direct"), seen.route.stages[1])
    seen = replace(seen, route=replace(seen.route, stages=stages, return_edge="relay"))
    text = drawn(render_status(seen, 120), 120)
    assert "you -(20 ms, direct)-> abcdefgh [0-3] -(20 ms)-> ijklmnop [4-7] -(20 ms, relay)-> you" in text


def test_holes_and_lost_nodes_are_shown() -> None:
    nodes = [node("abcdefgh", 0, 4, standing="down"), node("ijklmnop", 4, 8)]
    shown = render_status(snapshot(nodes), 60)
    text = drawn(shown)
    assert "layers 0-3 are held by nobody" in text and "!!!!▂▂▂▂" in text and "down" in text
    assert "\x1b[" in drawn(shown, color=True)


def test_an_empty_swarm_is_said_to_be_empty() -> None:
    assert "nobody serves a model yet" in drawn(render_status(snapshot([], 0), 60))


@pytest.mark.parametrize("width", [20, 33, 120])
def test_the_bar_and_the_ring_wrap(width: int) -> None:
    bar = coverage_bar([1, 0, 9] * 40, width)
    assert "".join(bar) == "▂!█" * 40 and all(len(line) <= width for line in bar)
    lines = draw_ring([(f"node{i} [0-9]", 12.0) for i in range(6)], 3.0, 60)
    assert all(len(line) <= 60 for line in lines) and lines[-1].endswith("-(3 ms)-> you")


@pytest.mark.parametrize("name", ["four-unequal", "six-regions", "volunteers"])
def test_a_dry_run_reads_well_in_60_columns(name: str) -> None:
    run = dry_run(read_fleet([FLEETS / f"{name}.toml"]), explain=True)
    text = drawn(render_plan(run, 60, explain=True))
    assert max(len(line) for line in text.splitlines()) <= 60
    assert "tokens/s" in text and "without a node of the route" in text and "why" in text
    assert "why" not in drawn(render_plan(run, 60))


def test_a_dry_run_without_a_route_says_why(tmp_path: Path) -> None:
    fleet = {
        "model": {"name": "m", "layers": 9, "layer_gb": 1.0, "hidden": 64, "kv_bytes": 10},
        "node": [{"name": "a", "memory_gb": 2.5, "ms": [1, 1, 2]}],
    }
    path = tmp_path / "f.json"
    path.write_text(json.dumps(fleet))
    text = drawn(render_plan(dry_run(read_fleet([path])), 60))
    assert "layers 2-8 are held by nobody; 1 node present" in text and "tokens/s" not in text
