"""How members of a swarm reach each other for a run: dial, and say hello where that was not done yet."""

from __future__ import annotations

from swarm.base.errors import PeerError
from swarm.mesh.gossip import Gossip
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.ring.connect import DIAL_TIMEOUT_S, Reach
from swarm.ring.opening import StagePlan


def greeting(board: Switchboard, gossip: Gossip) -> Reach:
    """Dials a stage and says hello, so that it admits what follows."""

    async def reach(plan: StagePlan) -> Peer:
        peer = await board.peer(plan.node, plan.addresses, DIAL_TIMEOUT_S)
        await gossip.link(plan.node)
        if peer.closed_reason is not None:
            raise PeerError(peer.closed_reason)
        return peer

    return reach
