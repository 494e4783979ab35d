"""Measuring round trips: neighbours, what a planner asks for, and now and then somebody far away."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from swarm.base.clock import TimeSource
from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId
from swarm.mesh.latency import RttTable
from swarm.mesh.record import EDGES, KEY_BYTES, NodeRecord
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard

PING_S = 20.0
PINGS = 3
DIAL_S = 5.0
AT_ONCE = 4
IDLE_BYTES = 8192


class HearsDistances(Protocol):
    """Is told of each measurement."""

    def measured(self, node: NodeId, rtt_ms: float) -> None: ...


class Distances:
    """This node's measurements; `owner` hears of each."""

    def __init__(self, board: Switchboard, time: TimeSource, owner: HearsDistances) -> None:
        self.table = RttTable()
        self._board, self._time, self._owner = board, time, owner
        self._useful: frozenset[NodeId] = frozenset()
        self._edges: dict[NodeId, str] = {}

    def for_record(self) -> dict[str, Any]:
        """What this node's record tells, as its fields: the useful ones, then the latest, and how they were reached."""
        told = self.table.for_record(self._time.now(), self._useful)
        return {
            "rtts": tuple((node[:KEY_BYTES], us) for node, us in told),
            "edges": tuple(self._edge(node) for node, _ in told),
        }

    def _edge(self, node: NodeId) -> str:
        peer = self._board.get(node)
        kind = self._edges.get(node, "") if peer is None else peer.edge
        return kind if kind in EDGES else ""

    def observe(self, node: NodeId, rtt_ms: float) -> None:
        """A round trip to `node` was measured."""
        self.table = self.table.add(node, rtt_ms, self._time.now())
        self._owner.measured(node, rtt_ms)

    async def ping(self, peer: Peer) -> None:
        """Measure a connected peer. Raises PeerError."""
        series = await peer.ping(PINGS)
        self._edges = {node: kind for node, kind in self._edges.items() if node in self.table.measured}
        self._edges[peer.id] = peer.edge
        self.observe(peer.id, series.median_us / 1000)

    async def measure(self, records: Sequence[NodeRecord]) -> None:
        """Measure those without a fresh measurement, and go on telling of them. Who is not reached is skipped."""
        self._useful = frozenset(record.node for record in records)
        stale = [r for r in records if r.node != self._board.id and self.table.get(r.node, self._time.now()) is None]
        room = asyncio.Semaphore(AT_ONCE)

        async def one(record: NodeRecord) -> None:
            async with room:
                with contextlib.suppress(PeerError):
                    await self.ping(await self._board.peer(record.node, record.addresses, DIAL_S))

        await asyncio.gather(*(one(record) for record in stale))

    async def keep_measuring(
        self, neighbours: Callable[[], Collection[Peer]], somebody: Callable[[random.Random], NodeRecord | None]
    ) -> None:
        """For ever: every neighbour, and one member at random, every PING_S."""
        draw = random.Random()
        while True:
            await asyncio.sleep(PING_S)
            for peer in list(neighbours()):
                with contextlib.suppress(PeerError):
                    await self.ping(peer)
            far = somebody(draw)
            if far is not None:
                await self._visit(far, neighbours)

    async def _visit(self, record: NodeRecord, neighbours: Callable[[], Collection[Peer]]) -> None:
        """One round trip to any member: coordinates from neighbours alone would not know the rest of the world."""
        if record.node == self._board.id or self._board.get(record.node) is not None:
            return
        with contextlib.suppress(PeerError):
            peer = await self._board.peer(record.node, record.addresses, DIAL_S)
            await self.ping(peer)
            unused = peer.sent_bytes + peer.received_bytes < IDLE_BYTES and peer not in neighbours()
            if unused:
                await peer.close("measured")
