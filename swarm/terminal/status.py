"""`swarm status`: a swarm at one moment, and how it looks in a terminal.

`look_now` makes the record (`swarm.base.swarm_state`) with the ring that a request would take; `status_json` is what
`--json` prints of it and `render_status` draws the same, so the two never tell different stories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from swarm.base.errors import CoverageError
from swarm.base.nodeid import NodeId, id_text
from swarm.base.swarm_state import NodeState, RouteState, Span, StageState, SwarmState
from swarm.discovery.planner_view import member_of, rtts_of
from swarm.mesh.gossip import Gossip
from swarm.mesh.status import EdgeOf, state_of
from swarm.mesh.view import MemberView
from swarm.planner.fleet import Member, ModelShape, Rtts, say_layers
from swarm.planner.route import Ask, plan_route

SHADES = " ▁▂▃▄▅▆▇█"
MAX_RTTS = 12
MAX_KERNELS = 4
STYLES = {"serving": "green", "joining": "yellow", "draining": "yellow", "suspect": "yellow", "down": "red"}


def look_now(
    gossip: Gossip,
    own: NodeId,
    model: bytes,
    ref: str,
    shape: ModelShape | None = None,
    edge_of: EdgeOf = lambda node: None,
) -> SwarmState:
    """The swarm as this node sees it now. `shape` None: sizes unknown, the sample ring is priced by layers alone."""
    membership = gossip.membership
    views = [view for view in gossip.members() if view.standing in ("up", "suspect", "down")]
    seen = replace(state_of(views, own, membership.swarm, membership.open, edge_of), model=ref, digest=model.hex())
    rtts = rtts_of(gossip, own, views)
    shown = [node.id for node in seen.nodes[:MAX_RTTS]]
    apart = tuple(tuple(float(ms) for ms in row) for row in rtts(shown)) if shown else ()
    route = None
    if seen.n_layers and not seen.missing:
        members = [member_of(view) for view in views]
        route = _route(shape or _flat(ref, seen.n_layers), members, rtts, seen.here, _kinds(views, own, edge_of))
    return replace(seen, rtts_ms=apart, route=route)


def _flat(ref: str, n_layers: int) -> ModelShape:
    return ModelShape(ref, (0,) * n_layers, 0, 0)


def _kinds(views: Sequence[MemberView], own: NodeId, edge_of: EdgeOf) -> Callable[[str, str], str | None]:
    """How two nodes (text ids) are connected: as this process knows, or as one of the two says; None: nobody says."""
    records = {id_text(view.record.node): view.record for view in views}

    def kind(a: str, b: str) -> str | None:
        for here, there in ((a, b), (b, a)):
            if here == id_text(own) and there in records:
                return edge_of(records[there].node)
        if a not in records or b not in records:
            return None
        one, other = records[a], records[b]
        return one.edge_to(other.node) or other.edge_to(one.node) or None

    return kind


def _route(
    shape: ModelShape, members: Sequence[Member], rtts: Rtts, own: str, kind: Callable[[str, str], str | None]
) -> RouteState | None:
    """The route that a request of this node would take now, with the kind of the edge into each stage."""
    try:
        route = plan_route(shape, members, rtts, Ask(own, rows=1))
    except CoverageError:
        return None
    stages = tuple(
        StageState(s.node, (s.first, s.last), kind(before, s.node), s.arrive_ms, s.compute_ms)
        for before, s in zip((own, *route.nodes), route.stages, strict=False)
    )
    return RouteState(stages, route.return_ms, kind(route.nodes[-1], own), route.pass_ms)


def status_json(state: SwarmState) -> dict[str, object]:
    """What `swarm status --json` prints. Fields stay; new ones may come."""
    held, missing = state.held, state.missing
    return {
        "swarm": state.swarm,
        "open": state.open,
        "model": {"ref": state.model, "digest": state.digest, "layers": state.n_layers},
        "covered": bool(held) and not missing,
        "missing": say_layers(missing) if missing else None,
        "held": list(held),
        "nodes": [_node_json(node, state.here) for node in state.nodes],
        "rtts_ms": [[round(ms, 2) for ms in row] for row in state.rtts_ms],
        "ring": None if state.route is None else _route_json(state.route),
    }


def _route_json(route: RouteState) -> dict[str, object]:
    stages = [
        {
            "node": stage.node,
            "layers": list(stage.layers),
            "edge": stage.edge,
            "arrive_ms": round(stage.arrive_ms, 2),
            "compute_ms": round(stage.compute_ms, 2),
        }
        for stage in route.stages
    ]
    return {
        "stages": stages,
        "return_ms": round(route.return_ms, 2),
        "return_edge": route.return_edge,
        "pass_ms": round(route.pass_ms, 2),
    }


def _node_json(node: NodeState, here: str) -> dict[str, object]:
    def listed(values: Span | tuple[float, ...] | None) -> list[float] | None:
        return None if values is None else list(values)

    return {
        "node": node.id,
        "name": node.short,
        "self": node.id == here,
        "standing": node.standing,
        "state": node.says,
        "layers": listed(node.layers),
        "claim": listed(node.claim),
        "device": node.device,
        "dtype": node.dtype,
        "fingerprint": node.fingerprint or None,
        "ms_per_layer": listed(node.speed_ms),
        "overflow": node.overflow,
        "overflow_ms_per_layer": listed(node.overflow_ms),
        "kv_free": node.kv_free,
        "kv_capacity": node.kv_capacity,
        "sessions": node.sessions,
        "queue_ms": node.queue_ms,
        "rtt_ms": None if node.rtt_ms is None else round(node.rtt_ms, 2),
        "edge": node.edge,
        "owner": node.owner,
        "addresses": list(node.addresses),
        "relay": node.relay,
        "age_s": round(node.age_s, 1),
        "software": node.software,
    }


def render_status(state: SwarmState, width: int) -> RenderableType:
    """The snapshot for a terminal of `width` columns (60 and more read well)."""
    up = sum(node.standing == "up" for node in state.nodes)
    kind = "open swarm" if state.open else "swarm"
    head = Text.assemble(
        (f"{kind} {state.swarm[:8]}", "bold"),
        f"  {state.model}, {state.n_layers} layers, {up} {'node' if up == 1 else 'nodes'} up",
    )
    parts: list[RenderableType] = [head, Text(), _table(state, width), Text(), _coverage(state, width)]
    if (kernels := _kernels(state.nodes)) is not None:
        parts.append(kernels)
    if state.route is not None:
        parts += [Text(), _picture(state, state.route, width)]
    if len(state.nodes) > 1 and state.rtts_ms:
        parts += [Text(), _rtts(state, width)]
    return Group(*parts)


def _table(seen: SwarmState, width: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for name, justify in (("node", "left"), ("state", "left"), ("layers", "right"), ("ms", "right"), ("rtt", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("runs", justify="right", no_wrap=True)
    wide = width >= 100
    table.add_column("device", overflow="ellipsis", no_wrap=True, max_width=max(8, width - (88 if wide else 50)))
    if wide:
        table.add_column("edge", no_wrap=True)
        table.add_column("address", overflow="ellipsis", no_wrap=True, max_width=30)
    for node in seen.nodes:
        layers, here = node.layers or node.claim, node.id == seen.here
        cells: list[Text | str] = [
            Text(f"{node.short}{'*' if here else ''}", "bold" if here else ""),
            Text(node.state, STYLES.get(node.state, "")),
            f"{layers[0]}-{layers[1] - 1}{'' if node.layers else '?'}" if layers else "-",
            "-" if node.speed_ms is None else f"{node.speed_ms[0]:.1f}",
            "-" if node.rtt_ms is None or here else f"{node.rtt_ms:.1f}",
            str(node.sessions),
            node.device or "-",
        ]
        table.add_row(*cells, *([node.edge or "-", ", ".join(node.addresses[:2]) or "-"] if wide else []))
    return table


def coverage_bar(held: Sequence[int], width: int) -> list[str]:
    """One character per layer, taller for more holders, "!" for none; wrapped into lines of `width`."""
    cells = ["!" if count == 0 else SHADES[min(count * 2, 8)] for count in held]
    return ["".join(cells[i : i + width]) for i in range(0, len(cells), width)]


def _coverage(state: SwarmState, width: int) -> Text:
    held, missing = state.held, state.missing
    if not held:
        return Text("nobody serves a model yet")
    room = max(16, width - 12)
    text = Text()
    for i, line in enumerate(coverage_bar(held, room)):
        text.append("layers      " if i == 0 else " " * 12, "dim")
        for cell in line:
            text.append(cell, "bold red" if cell == "!" else "green")
        text.append("\n")
    if missing:
        said = say_layers(missing)
        verb = "is" if said.startswith("layer ") else "are"
        text.append(f"{said} {verb} held by nobody", "red")
    else:
        text.append(f"all {len(held)} layers held, the least by {min(held)}", "green")
    return text


def _kernels(nodes: Sequence[NodeState]) -> Text | None:
    """Which nodes compute alike to the last bit: by fingerprint, the most nodes first; None where none measured one."""
    groups: dict[str, list[str]] = {}
    for node in nodes:
        if node.fingerprint and node.layers and node.standing == "up":
            groups.setdefault(node.fingerprint, []).append(node.short)
    if not groups:
        return None
    text = Text()
    for i, (digest, names) in enumerate(
        sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:MAX_KERNELS]
    ):
        text.append("\n" if i else "")
        text.append("kernels     " if i == 0 else " " * 12, "dim")
        named = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        text.append(f"{digest[:8]}  {named}" if len(groups) > 1 else f"{digest[:8]}, all alike")
    return text


def draw_ring(
    steps: Sequence[tuple[str, float]], home_ms: float, width: int, kinds: Sequence[str | None] = ()
) -> list[str]:
    """`you -(12 ms, direct)-> node [0-9] -(8 ms)-> ... -> you` in lines of at most `width` columns where words allow.

    `kinds`: of the edges, the one home last; none where nobody says.
    """
    hops = [*steps, ("you", home_ms)]
    said = [f", {kind}" if kind else "" for kind in (*kinds, *[None] * (len(hops) - len(kinds)))]
    words = ["you", *(f"-({ms:.0f} ms{kind})-> {label}" for (label, ms), kind in zip(hops, said, strict=True))]
    lines, line = [], ""
    for word in words:
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = "    " + word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


def _picture(state: SwarmState, route: RouteState, width: int) -> Text:
    names = {node.id: node.short for node in state.nodes}
    steps = [(f"{names.get(s.node, s.node[:8])} [{s.layers[0]}-{s.layers[1] - 1}]", s.arrive_ms) for s in route.stages]
    kinds = [*(stage.edge for stage in route.stages), route.return_edge]
    text = Text("\n".join(draw_ring(steps, route.return_ms, width, kinds)))
    text.append(f"\none pass about {route.pass_ms:.0f} ms, one way per hop shown", "dim")
    return text


def _rtts(state: SwarmState, width: int) -> Table:
    """Round trips between members, as many as fit the width."""
    count = max(2, min(len(state.rtts_ms), (width - 10) // 6))
    names = [node.short for node in state.nodes][:count]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("rtt ms", no_wrap=True)
    for name in names:
        table.add_column(name[:5], justify="right", no_wrap=True)
    for i, name in enumerate(names):
        row = state.rtts_ms[i][:count]
        table.add_row(name, *("·" if i == j else f"{ms:.0f}" for j, ms in enumerate(row)))
    return table
