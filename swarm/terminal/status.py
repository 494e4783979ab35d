"""`swarm status`: one plain snapshot of the swarm, and how it looks in a terminal.

`status_data` is what `--json` prints; `render_status` draws the same data, so the two never tell different stories.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from swarm.base.address import format_address
from swarm.base.errors import CoverageError
from swarm.base.nodeid import NodeId, id_text, short_id
from swarm.discovery.planner_view import member_of, rtts_of
from swarm.mesh.gossip import Gossip
from swarm.mesh.view import MemberView
from swarm.planner.fleet import ModelShape, gaps, holders, say_layers
from swarm.planner.route import Ask, plan_route

SHADES = " ▁▂▃▄▅▆▇█"
MAX_RTTS = 12
MAX_KERNELS = 4
STYLES = {"serving": "green", "joining": "yellow", "draining": "yellow", "suspect": "yellow", "down": "red"}


def status_data(
    gossip: Gossip,
    own: NodeId,
    model: bytes,
    ref: str,
    shape: ModelShape | None = None,
    edge_of: Callable[[NodeId], str | None] = lambda node: None,
) -> dict[str, Any]:
    """The swarm as this node sees it now. `shape` None: sizes unknown, the sample ring is priced by layers alone.

    `edge_of`: how this process is connected to a node (see `swarm.net.peer`); None where it is not.
    """
    views = [view for view in gossip.members() if view.standing in ("up", "suspect", "down")]
    n_layers = max((view.record.n_layers for view in views), default=0)
    members = [member_of(view) for view in views]
    held = [int(count) for count in holders([m for m in members if m.state == "serving"], n_layers)] if n_layers else []
    missing = gaps(held) if n_layers else ()
    names = [view.record.node for view in views]
    rtts = rtts_of(gossip, own, views)
    shown = [id_text(name) for name in names[:MAX_RTTS]]
    kind = _kinds(views, own, edge_of)
    ring = _ring(shape or _flat(ref, n_layers), members, rtts, id_text(own), kind) if n_layers and not missing else None
    return {
        "swarm": gossip.membership.swarm.hex(),
        "open": gossip.membership.open,
        "model": {"ref": ref, "digest": model.hex(), "layers": n_layers},
        "covered": bool(n_layers) and not missing,
        "missing": say_layers(missing) if missing else None,
        "held": held,
        "nodes": [_node(view, own, edge_of(view.record.node)) for view in views],
        "rtts_ms": [[round(float(ms), 2) for ms in row] for row in rtts(shown)] if shown else [],
        "ring": ring,
    }


def _flat(ref: str, n_layers: int) -> ModelShape:
    return ModelShape(ref, (0,) * n_layers, 0, 0)


def _kinds(
    views: Sequence[MemberView], own: NodeId, edge_of: Callable[[NodeId], str | None]
) -> Callable[[str, str], str | None]:
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


def _ring(
    shape: ModelShape, members: Sequence[Any], rtts: Any, own: str, kind: Callable[[str, str], str | None]
) -> dict[str, Any] | None:
    """The route that a request of this node would take now, with the kind of the edge into each stage."""
    try:
        route = plan_route(shape, members, rtts, Ask(own, rows=1))
    except CoverageError:
        return None
    stages = [
        {
            "node": s.node,
            "layers": [s.first, s.last],
            "edge": kind(before, s.node),
            "arrive_ms": round(s.arrive_ms, 2),
            "compute_ms": round(s.compute_ms, 2),
        }
        for before, s in zip((own, *route.nodes), route.stages, strict=False)
    ]
    return {
        "stages": stages,
        "return_ms": round(route.return_ms, 2),
        "return_edge": kind(route.nodes[-1], own),
        "pass_ms": round(route.pass_ms, 2),
    }


def _node(view: MemberView, own: NodeId, edge: str | None) -> dict[str, Any]:
    r = view.record
    return {
        "node": id_text(r.node),
        "name": short_id(r.node),
        "self": r.node == own,
        "standing": view.standing,
        "state": r.state,
        "layers": list(r.layers) if r.layers[1] > r.layers[0] else None,
        "claim": None if r.claim is None else list(r.claim),
        "device": r.device,
        "dtype": r.dtype,
        "fingerprint": r.fingerprint.hex() or None,
        "ms_per_layer": None if r.speed_us == (0, 0, 0) else [us / 1000 for us in r.speed_us],
        "overflow": r.overflow,
        "overflow_ms_per_layer": None if r.overflow_us == (0, 0, 0) else [us / 1000 for us in r.overflow_us],
        "kv_free": r.kv_free,
        "kv_capacity": r.kv_capacity,
        "sessions": r.sessions,
        "queue_ms": r.queue_us / 1000,
        "rtt_ms": None if view.rtt_ms is None else round(view.rtt_ms, 2),
        "edge": edge,
        "owner": r.owner,
        "addresses": [format_address(a) for a in r.addresses],
        "relay": r.relay,
        "age_s": round(view.age_s, 1),
        "software": r.software,
    }


def render_status(data: Mapping[str, Any], width: int) -> RenderableType:
    """The snapshot for a terminal of `width` columns (60 and more read well)."""
    model = data["model"]
    up = sum(node["standing"] == "up" for node in data["nodes"])
    kind = "open swarm" if data["open"] else "swarm"
    head = Text.assemble(
        (f"{kind} {data['swarm'][:8]}", "bold"),
        f"  {model['ref']}, {model['layers']} layers, {up} {'node' if up == 1 else 'nodes'} up",
    )
    parts: list[RenderableType] = [head, Text(), _table(data["nodes"], width), Text(), _coverage(data, width)]
    if (kernels := _kernels(data["nodes"])) is not None:
        parts.append(kernels)
    if data["ring"] is not None:
        parts += [Text(), _picture(data, width)]
    if len(data["nodes"]) > 1 and data["rtts_ms"]:
        parts += [Text(), _rtts(data, width)]
    return Group(*parts)


def _table(nodes: Sequence[Mapping[str, Any]], width: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for name, justify in (("node", "left"), ("state", "left"), ("layers", "right"), ("ms", "right"), ("rtt", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("runs", justify="right", no_wrap=True)
    wide = width >= 100
    table.add_column("device", overflow="ellipsis", no_wrap=True, max_width=max(8, width - (88 if wide else 50)))
    if wide:
        table.add_column("edge", no_wrap=True)
        table.add_column("address", overflow="ellipsis", no_wrap=True, max_width=30)
    for node in nodes:
        state = node["state"] if node["standing"] == "up" else node["standing"]
        layers = node["layers"] or node["claim"]
        name = f"{node['name']}{'*' if node['self'] else ''}"
        cells = [
            Text(name, "bold" if node["self"] else ""),
            Text(state, STYLES.get(state, "")),
            f"{layers[0]}-{layers[1] - 1}{'' if node['layers'] else '?'}" if layers else "-",
            "-" if node["ms_per_layer"] is None else f"{node['ms_per_layer'][0]:.1f}",
            "-" if node["rtt_ms"] is None or node["self"] else f"{node['rtt_ms']:.1f}",
            str(node["sessions"]),
            node["device"] or "-",
        ]
        table.add_row(*cells, *([node["edge"] or "-", ", ".join(node["addresses"][:2]) or "-"] if wide else []))
    return table


def coverage_bar(held: Sequence[int], width: int) -> list[str]:
    """One character per layer, taller for more holders, "!" for none; wrapped into lines of `width`."""
    cells = ["!" if count == 0 else SHADES[min(count * 2, 8)] for count in held]
    return ["".join(cells[i : i + width]) for i in range(0, len(cells), width)]


def _coverage(data: Mapping[str, Any], width: int) -> Text:
    held = data["held"]
    if not held:
        return Text("nobody serves a model yet")
    room = max(16, width - 12)
    text = Text()
    for i, line in enumerate(coverage_bar(held, room)):
        text.append("layers      " if i == 0 else " " * 12, "dim")
        for cell in line:
            text.append(cell, "bold red" if cell == "!" else "green")
        text.append("\n")
    if data["missing"]:
        verb = "is" if data["missing"].startswith("layer ") else "are"
        text.append(f"{data['missing']} {verb} held by nobody", "red")
    else:
        text.append(f"all {len(held)} layers held, the least by {min(held)}", "green")
    return text


def _kernels(nodes: Sequence[Mapping[str, Any]]) -> Text | None:
    """Which nodes compute alike to the last bit: by fingerprint, the most nodes first; None where none measured one."""
    groups: dict[str, list[str]] = {}
    for node in nodes:
        if node.get("fingerprint") and node["layers"] and node["standing"] == "up":
            groups.setdefault(node["fingerprint"], []).append(node["name"])
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


def _picture(data: Mapping[str, Any], width: int) -> Text:
    names = {node["node"]: node["name"] for node in data["nodes"]}
    ring = data["ring"]
    steps = [
        (f"{names.get(s['node'], s['node'][:8])} [{s['layers'][0]}-{s['layers'][1] - 1}]", s["arrive_ms"])
        for s in ring["stages"]
    ]
    kinds = [*(stage.get("edge") for stage in ring["stages"]), ring.get("return_edge")]
    text = Text("\n".join(draw_ring(steps, ring["return_ms"], width, kinds)))
    text.append(f"\none pass about {ring['pass_ms']:.0f} ms, one way per hop shown", "dim")
    return text


def _rtts(data: Mapping[str, Any], width: int) -> Table:
    """Round trips between members, as many as fit the width."""
    count = max(2, min(len(data["rtts_ms"]), (width - 10) // 6))
    names = [node["name"] for node in data["nodes"]][:count]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("rtt ms", no_wrap=True)
    for name in names:
        table.add_column(name[:5], justify="right", no_wrap=True)
    for i, name in enumerate(names):
        row = data["rtts_ms"][i][:count]
        table.add_row(name, *("·" if i == j else f"{ms:.0f}" for j, ms in enumerate(row)))
    return table
