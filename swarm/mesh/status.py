"""From what the mesh knows to what the dashboard shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from swarm.base.nodeid import NodeId, id_text
from swarm.mesh.gossip import Gossip
from swarm.mesh.view import MemberView
from swarm.net.switchboard import Switchboard

_KEY_BYTES = 8


def mesh_status(gossip: Gossip, board: Switchboard) -> dict[str, Any]:
    """Members and measured paths, as plain data; addresses and proofs stay out.

    `{"node": own id, "swarm": hex, "nodes": [NodeState fields], "edges": [EdgeState fields]}`.
    """
    return status_of(gossip.members(), board.id, gossip.membership.swarm, lambda node: _edge_kind(board, node))


def _edge_kind(board: Switchboard, node: NodeId) -> str:
    peer = board.get(node)
    return "" if peer is None else peer.edge


def status_of(
    views: Iterable[MemberView], own: NodeId, swarm: bytes, kind_of: Callable[[NodeId], str]
) -> dict[str, Any]:
    """The same, from a list of members: pure."""
    shown = [view for view in views if view.standing in ("up", "suspect", "down")]
    return {
        "node": id_text(own),
        "swarm": swarm.hex(),
        "nodes": [_node(view) for view in shown],
        "edges": _edges(shown, own, kind_of),
    }


def _node(view: MemberView) -> dict[str, Any]:
    record = view.record
    state = {"down": "lost", "suspect": "suspect"}.get(view.standing, record.state)
    layers = record.claim if record.state == "joining" and record.claim else record.layers
    measured = record.speed_us[0]
    return {
        "id": id_text(record.node),
        "device": record.device,
        "layers": list(layers),
        "state": state,
        "layer_ms": measured / 1000 if measured else None,
        "queue_ms": record.queue_us / 1000 if record.layers[1] else None,
        "kv_used": record.kv_capacity - record.kv_free if record.kv_capacity else None,
        "kv_budget": record.kv_capacity or None,
        "sessions": record.sessions,
        "owner": record.owner,
    }


def _edges(views: list[MemberView], own: NodeId, kind_of: Callable[[NodeId], str]) -> list[dict[str, Any]]:
    """One edge per pair: what this process measured itself counts before what members say."""
    nodes = {view.record.node[:_KEY_BYTES]: view.record.node for view in views if view.standing != "down"}
    found: dict[frozenset[NodeId], dict[str, Any]] = {}
    for view in views:
        if view.standing == "down":
            continue
        for key, us in view.record.rtts:
            other = nodes.get(key)
            if other is not None and other != view.record.node:
                pair = frozenset((view.record.node, other))
                kind = view.record.edge_to(other) or found.get(pair, {}).get("kind", "")
                found[pair] = _edge(view.record.node, other, us / 1000, kind)
    for view in views:
        node = view.record.node
        if node != own and view.standing != "down" and view.rtt_ms is not None:
            found[frozenset((own, node))] = _edge(own, node, view.rtt_ms, kind_of(node))
    return list(found.values())


def _edge(a: NodeId, b: NodeId, rtt_ms: float, kind: str) -> dict[str, Any]:
    return {"a": id_text(a), "b": id_text(b), "rtt_ms": round(rtt_ms, 2), "kind": kind}
