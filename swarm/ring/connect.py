"""How a ring's edges are made: whoever composes the process decides, rings only ask."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from swarm.base.errors import PeerError
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.ring.opening import StagePlan

DIAL_TIMEOUT_S = 8.0
PING_TIMEOUT_S = 1.5


class StageConnector(Protocol):
    """Makes the edges of a ring."""

    async def connect(self, stage: StagePlan) -> Peer:
        """The connected peer of a stage. Raises PeerError."""


class PlainConnector:
    """By dialling the stage's addresses."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard

    async def connect(self, stage: StagePlan) -> Peer:
        """The connected peer of a stage. Raises PeerError."""
        return await self._switchboard.peer(stage.node, stage.addresses, DIAL_TIMEOUT_S)


async def unreachable(connector: StageConnector, stages: Sequence[StagePlan]) -> frozenset[bytes]:
    """Which of the stages do not answer a ping now."""

    async def reached(stage: StagePlan) -> bool:
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                peer = await connector.connect(stage)
                await peer.ping(1)
        except (TimeoutError, PeerError):
            return False
        return True

    found = await asyncio.gather(*(reached(stage) for stage in stages))
    return frozenset(stage.node for stage, ok in zip(stages, found, strict=True) if not ok)
