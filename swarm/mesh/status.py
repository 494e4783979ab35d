"""From what the mesh knows to the one record of a swarm that everybody is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from swarm.base.address import format_address
from swarm.base.nodeid import NodeId, id_text
from swarm.base.swarm_state import EdgeState, NodeState, Standing, SwarmState
from swarm.mesh.gossip import Gossip
from swarm.mesh.view import MemberView
from swarm.net.switchboard import Switchboard

_KEY_BYTES = 8
_SHOWN: dict[str, Standing] = {"up": "up", "suspect": "suspect", "down": "down"}

EdgeOf: TypeAlias = Callable[[NodeId], str | None]
"""How this process is connected to a node (see `swarm.net.peer`); None where it is not."""


def edges_of(board: Switchboard) -> EdgeOf:
    """As the open connections say."""

    def edge_of(node: NodeId) -> str | None:
        peer = board.get(node)
        return None if peer is None else peer.edge

    return edge_of


def mesh_status(gossip: Gossip, board: Switchboard) -> SwarmState:
    """Members and measured paths as this process knows them now."""
    return state_of(gossip.members(), board.id, gossip.membership.swarm, gossip.membership.open, edges_of(board))


def state_of(views: Iterable[MemberView], own: NodeId, swarm: bytes, is_open: bool, edge_of: EdgeOf) -> SwarmState:
    """The same, from a list of members: pure. Who left is not shown."""
    shown = [view for view in views if view.standing in _SHOWN]
    return SwarmState(
        here=id_text(own),
        swarm=swarm.hex(),
        open=is_open,
        n_layers=max((view.record.n_layers for view in shown), default=0),
        nodes=tuple(_node(view, edge_of(view.record.node)) for view in shown),
        edges=tuple(_edges(shown, own, edge_of)),
    )


def _node(view: MemberView, edge: str | None) -> NodeState:
    r = view.record
    return NodeState(
        id=id_text(r.node),
        standing=_SHOWN[view.standing],
        says=r.state,
        layers=r.layers if r.layers[1] > r.layers[0] else None,
        claim=r.claim,
        device=r.device,
        dtype=r.dtype,
        fingerprint=r.fingerprint.hex(),
        speed_ms=_speed_ms(r.speed_us),
        overflow=r.overflow,
        overflow_ms=_speed_ms(r.overflow_us),
        kv_free=r.kv_free,
        kv_capacity=r.kv_capacity,
        sessions=r.sessions,
        queue_ms=r.queue_us / 1000,
        rtt_ms=view.rtt_ms,
        edge=edge,
        owner=r.owner,
        addresses=tuple(format_address(address) for address in r.addresses),
        relay=r.relay,
        age_s=view.age_s,
        software=r.software,
    )


def _speed_ms(us: tuple[int, int, int]) -> tuple[float, float, float] | None:
    return None if us == (0, 0, 0) else (us[0] / 1000, us[1] / 1000, us[2] / 1000)


def _edges(views: list[MemberView], own: NodeId, edge_of: EdgeOf) -> Iterable[EdgeState]:
    """One edge per pair: what this process measured itself counts before what members say."""
    nodes = {view.record.node[:_KEY_BYTES]: view.record.node for view in views if view.standing != "down"}
    found: dict[frozenset[NodeId], EdgeState] = {}
    for view in views:
        if view.standing == "down":
            continue
        for key, us in view.record.rtts:
            other = nodes.get(key)
            if other is not None and other != view.record.node:
                pair = frozenset((view.record.node, other))
                known = found.get(pair)
                kind = view.record.edge_to(other) or (known.kind if known is not None else "")
                found[pair] = _edge(view.record.node, other, us / 1000, kind)
    for view in views:
        node = view.record.node
        if node != own and view.standing != "down" and view.rtt_ms is not None:
            found[frozenset((own, node))] = _edge(own, node, view.rtt_ms, edge_of(node) or "")
    return found.values()


def _edge(a: NodeId, b: NodeId, rtt_ms: float, kind: str) -> EdgeState:
    return EdgeState(id_text(a), id_text(b), round(rtt_ms, 2), kind)
