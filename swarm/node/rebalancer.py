"""A serving node looks now and then whether the swarm needs it elsewhere, and moves when everybody knows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import dataclass, field
from typing import Protocol

from swarm.base.clock import SystemTime, TimeSource
from swarm.base.errors import SwarmError
from swarm.base.nodeid import NodeId
from swarm.discovery.planner_view import Outlook, rtts_of
from swarm.mesh.gossip import Gossip
from swarm.planner.block_choice import BlockChoice, Room, reconsider
from swarm.planner.fleet import ModelShape

log = logging.getLogger(__name__)

LOOK_S = 5.0
SETTLE_S = 1.5
LEAST_S = 1.0
LEISURE = 50
"""News may make a node look again at once, but not so often that looking takes more than a fiftieth of its time."""


class Movable(Protocol):
    """A serving node, as far as its block can be exchanged."""

    @property
    def idle(self) -> bool:
        """Whether no run uses the node now."""

    async def move(self, block: BlockChoice) -> bool:
        """Load the block, publish it as the node's layers with `claim=None`, and return True; False, or SwarmError,
        when it serves the old one on."""


@dataclass
class Rebalancer:
    """Run `keep_looking` as a task of a serving node.

    `model`: manifest digest (32 bytes). `node`: what moves.
    `look_s`: seconds between two looks without news; `settle_s`: how long a claim stands before it is acted on.
    """

    gossip: Gossip
    own: NodeId
    model: bytes
    shape: ModelShape
    room: Room
    block: BlockChoice
    node: Movable
    time: TimeSource = field(default_factory=SystemTime)
    look_s: float = LOOK_S
    settle_s: float = SETTLE_S

    def __post_init__(self) -> None:
        self._since = self.time.now()
        self._spent_s = 0.0
        self._outlook = Outlook(self.gossip, self.model)

    async def keep_looking(self) -> None:
        """For ever: look, say it, wait for others, look again, move."""
        while True:
            await self._wait()
            wish = self._better()
            if wish is None:
                continue
            self.gossip.publish(claim=(wish.first, wish.last))
            await asyncio.sleep(self.settle_s)
            again = self._better()
            if again is None or (again.first, again.last) != (wish.first, wish.last):
                self.gossip.publish(claim=None)
                continue
            try:
                moved = await self.node.move(again)
            except SwarmError as error:
                log.warning("this node stays where it is: %s", error)
                moved = False
            if moved:
                self.block = again
            else:
                self.gossip.publish(claim=None)
            # A move that failed counts too: the next one is as far away.
            self._since = self.time.now()

    async def _wait(self) -> None:
        """Until there is news, or it is time."""
        pause = min(self.look_s, max(LEAST_S, LEISURE * self._spent_s)) * random.uniform(0.8, 1.2)
        await asyncio.sleep(pause)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self.look_s - pause)):
                await self.gossip.wait_change()

    def _better(self) -> BlockChoice | None:
        began = time.perf_counter()
        found = reconsider(
            self.shape,
            self.room,
            self.block,
            self._outlook.members(),
            idle=self.node.idle,
            since_move_s=self.time.now() - self._since,
            rtts=rtts_of(self.gossip, self.own),
        )
        self._spent_s = time.perf_counter() - began
        return found
