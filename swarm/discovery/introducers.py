"""Whom to ask when no peer is connected to the node that is wanted: members that lately were."""

from __future__ import annotations

import asyncio

from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId
from swarm.mesh.gossip import Gossip
from swarm.mesh.membership import InviteError
from swarm.net.switchboard import Switchboard

AT_ONCE = 3
DIAL_SECONDS = 2.5


class MemberIntroducer:
    """For `Reach(introducer=...)`: connects to up to three members that can be dialled and that know the wanted node.

    Those are the nodes that its record says it measured lately, nearest to it first, then the ones through which this
    process came into the swarm. Only plain dialling is used, so that one introduction never needs another.
    """

    def __init__(self, board: Switchboard, gossip: Gossip) -> None:
        self._board, self._gossip = board, gossip

    async def introduce(self, node: NodeId) -> None:
        """Connect to the likeliest; those that are not reached are skipped."""
        await asyncio.gather(*map(self._meet, candidates(self._board, self._gossip, node)[:AT_ONCE]))

    async def _meet(self, node: NodeId) -> None:
        view = self._gossip.member(node)
        try:
            if self._board.get(node) is None and view is not None:
                await self._board.dial(node, view.record.addresses, DIAL_SECONDS)
            await self._gossip.link(node)
        except (PeerError, InviteError):
            pass  # not a public node, or gone: the others may do


def candidates(board: Switchboard, gossip: Gossip, node: NodeId) -> list[NodeId]:
    """Members that may be connected to `node`, are not connected here and have an address, the likeliest first."""
    view = gossip.member(node)
    near = {} if view is None else dict(view.record.rtts)
    members = {v.record.node: v for v in gossip.members() if v.standing == "up" and v.record.addresses}
    known = sorted((n for n in members if n[:8] in near), key=lambda n: near[n[:8]])
    entries = [n for n, _ in gossip.saved().peers if n in members]
    return [n for n in dict.fromkeys([*known, *entries]) if n not in (node, board.id) and board.get(n) is None]
