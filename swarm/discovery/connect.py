"""How members of a swarm reach each other for a run: dial, and say hello where that was not done yet."""

from __future__ import annotations

from swarm.base.errors import PeerError
from swarm.mesh.gossip import Gossip
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.ring.connect import DIAL_TIMEOUT_S
from swarm.ring.opening import StagePlan


class MemberConnector:
    """Dials a stage and says hello, so that it admits what follows."""

    def __init__(self, board: Switchboard, gossip: Gossip) -> None:
        self._board, self._gossip = board, gossip

    async def connect(self, stage: StagePlan) -> Peer:
        """The connected peer of a stage. Raises PeerError."""
        peer = await self._board.peer(stage.node, stage.addresses, DIAL_TIMEOUT_S)
        await self._gossip.link(stage.node)
        if peer.closed_reason is not None:
            raise PeerError(peer.closed_reason)
        return peer
