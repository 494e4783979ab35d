"""How a ring's edges are made: whoever composes the process decides, rings only ask."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.ring.opening import StagePlan

Reach = Callable[[StagePlan], Awaitable[Peer]]
"""Gives the connected peer of a stage. Raises PeerError."""

DIAL_TIMEOUT_S = 8.0


def dialler(switchboard: Switchboard) -> Reach:
    """Plain dialling of a stage's addresses."""

    async def reach(plan: StagePlan) -> Peer:
        return await switchboard.peer(plan.node, plan.addresses, DIAL_TIMEOUT_S)

    return reach
