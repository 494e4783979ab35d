"""How a ring's edges are made: whoever composes the process decides, rings only ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from swarm.base.errors import PeerError
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.ring.opening import StagePlan

Reach = Callable[[StagePlan], Awaitable[Peer]]
"""Gives the connected peer of a stage. Raises PeerError."""

DIAL_TIMEOUT_S = 8.0
PING_TIMEOUT_S = 1.5


def dialler(switchboard: Switchboard) -> Reach:
    """Plain dialling of a stage's addresses."""

    async def reach(plan: StagePlan) -> Peer:
        return await switchboard.peer(plan.node, plan.addresses, DIAL_TIMEOUT_S)

    return reach


async def unreachable(reach: Reach, stages: Sequence[StagePlan]) -> frozenset[bytes]:
    """Which of the stages do not answer a ping now."""

    async def reached(stage: StagePlan) -> bool:
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                peer = await reach(stage)
                await peer.ping(1)
        except (TimeoutError, PeerError):
            return False
        return True

    found = await asyncio.gather(*(reached(stage) for stage in stages))
    return frozenset(stage.node for stage, ok in zip(stages, found, strict=True) if not ok)
