"""A member as the rest of the node sees it."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.base.address import Address, format_address
from swarm.base.nodeid import NodeId, short_id
from swarm.mesh.latency import RttTable
from swarm.mesh.record import NodeRecord, key_of
from swarm.mesh.saved import MAX_PEERS
from swarm.mesh.state import State
from swarm.mesh.suspicion import standing
from swarm.mesh.table import Held


@dataclass(frozen=True)
class MemberView:
    """A member as this node sees it now.

    `standing`: "up", "suspect", "down", "left" or "expired". `rtt_ms`: measured here, None if not lately.
    `age_s`: since its record was issued. `linked`: a neighbour of this node.
    """

    record: NodeRecord
    standing: str
    rtt_ms: float | None
    age_s: float
    linked: bool


def held_of(state: State, node: NodeId) -> Held | None:
    """The record of `node`, if this node has one."""
    held = state.table.get(key_of(node))
    return held if held is not None and held.record.node == node else None


def view_of(state: State, rtts: RttTable, held: Held, now: float) -> MemberView:
    """How `held` looks at `now` (monotonic seconds)."""
    node = held.record.node
    rtt = 0.0 if node == state.node else rtts.get(node, now)
    return MemberView(held.record, standing(state, held, now), rtt, now - held.born, node in state.links)


def say_clash(other: NodeRecord) -> str:
    """The line for people when another process runs with this node's key."""
    where = ", ".join(format_address(address) for address in other.addresses) or "an unknown address"
    return f"two nodes use the key of {short_id(other.node)}; the other is at {where}; give one of them another --state"


def worth_keeping(
    state: State, before: tuple[tuple[NodeId, tuple[Address, ...]], ...], now: float
) -> tuple[tuple[NodeId, tuple[Address, ...]], ...]:
    """Whom to knock at after a cold start: neighbours, then whoever lives, then whom one knew `before`."""
    known = [h.record for h in state.table if h.record.addresses and h.record.node != state.node and h.alive(now)]
    near = sorted(known, key=lambda record: (record.node not in state.links, -record.issued))
    peers = {record.node: record.addresses for record in near[:MAX_PEERS]}
    for node, addresses in before:
        if len(peers) < MAX_PEERS:
            peers.setdefault(node, addresses)
    return tuple(peers.items())
