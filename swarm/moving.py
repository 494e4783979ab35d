"""A serving node looks now and then whether the swarm needs it elsewhere, and moves when everybody knows."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from swarm.atlas import members_of, rtts_of
from swarm.mesh.gossip import Gossip
from swarm.net.nodeid import NodeId
from swarm.ring.fleet import ModelShape
from swarm.ring.plan_block import Block, Room, reconsider

LOOK_S = 5.0
SETTLE_S = 1.5


@dataclass
class Mover:
    """Run `keep_looking` as a task of a serving node.

    `model`: manifest digest (32 bytes). `idle`: whether no run uses the node now. `move`: loads the block, publishes
    it as the node's layers with `claim=None`, and raises SwarmError when it cannot; the old block serves until then.
    """

    gossip: Gossip
    own: NodeId
    model: bytes
    shape: ModelShape
    room: Room
    block: Block
    idle: Callable[[], bool]
    move: Callable[[Block], Awaitable[None]]
    clock: Callable[[], float] = time.monotonic
    look_s: float = LOOK_S
    settle_s: float = SETTLE_S

    def __post_init__(self) -> None:
        self._since = self.clock()

    async def keep_looking(self) -> None:
        """For ever: look, say it, wait for others, look again, move."""
        while True:
            await asyncio.sleep(self.look_s * random.uniform(0.8, 1.2))
            wish = self._better()
            if wish is None:
                continue
            self.gossip.publish(claim=(wish.first, wish.last))
            await asyncio.sleep(self.settle_s)
            again = self._better()
            if again is None or (again.first, again.last) != (wish.first, wish.last):
                self.gossip.publish(claim=None)
                continue
            await self.move(again)
            self.block, self._since = again, self.clock()

    def _better(self) -> Block | None:
        return reconsider(
            self.shape,
            self.room,
            self.block,
            members_of(self.gossip, self.model),
            idle=self.idle(),
            since_move_s=self.clock() - self._since,
            rtts=rtts_of(self.gossip, self.own),
        )
