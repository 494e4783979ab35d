"""What a node hosts now: fetched, loaded, served, told of, and exchanged for another block when the node moves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from swarm.base.errors import RunError, SwarmError
from swarm.base.events import Notice
from swarm.base.life import Life
from swarm.base.nodeid import id_text
from swarm.discovery.planner_view import members_of, speed_of
from swarm.mesh.gossip import Gossip
from swarm.mesh.weights import WeightsServer
from swarm.model.device import tidy
from swarm.model.files.blobs import BlobSource
from swarm.model.files.manifest import Manifest
from swarm.net.switchboard import Switchboard
from swarm.node.host import Host, Hosting, own_software
from swarm.node.rebalancer import Rebalancer
from swarm.node.weights import fetch_from_members
from swarm.planner.block_choice import BlockChoice, Room, may_unload
from swarm.planner.fleet import say_layers
from swarm.stage.server import StageServer

QUIET_WAIT_S = 30.0
QUIET_LOOK_S = 0.2

Layers = tuple[int, int]


class BlockManager:
    """`hosting` is what this node serves. `from_members`: weights come from members of the swarm, not from `ref`.

    `stopping`: set when the node is told to end; what loads then is given up. `life` ends when no layers can be had.
    """

    def __init__(
        self,
        host: Host,
        board: Switchboard,
        gossip: Gossip,
        manifest: Manifest,
        ref: str,
        from_members: bool,
        stopping: asyncio.Event,
        life: Life,
    ) -> None:
        self.hosting: Hosting | None = None
        self._host, self._board, self._gossip, self._manifest = host, board, gossip, manifest
        self._ref, self._from_members, self._stopping = ref, from_members, stopping
        self._life = life
        self._weights: WeightsServer | None = None

    async def load(self, layers: Layers) -> Hosting | None:
        """The block, fetched, loaded and measured; None when the node is told to stop first. Raises SwarmError."""
        ref = self._ref
        if self._from_members:
            store, report = self._host.store, self._host.report
            ref = await fetch_from_members(self._gossip, self._board, self._manifest, layers, store, report)
        loading = asyncio.ensure_future(asyncio.to_thread(self._host.load, ref, layers))
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not loading.done():
            loading.cancel()
            return None
        return loading.result()

    def take(self, hosting: Hosting) -> None:
        """Serve its weights to others, and tell the swarm that these layers are served here."""
        self.close()
        self.hosting = hosting
        source = BlobSource(hosting.checkpoint)
        if self._weights is None:
            self._weights = WeightsServer(self._manifest, source, self._gossip)
            for kind, handler in self._weights.handlers().items():
                self._board.handle(kind, handler)
        else:
            self._weights.exchange(source)
        pool = hosting.hosted.pool
        self._gossip.publish(
            state="serving",
            layers=hosting.layers,
            claim=None,
            dtype=hosting.hosted.block.computes_in,
            software=own_software(hosting.hosted.compiler is not None),
            fingerprint=bytes.fromhex(hosting.hosted.fingerprint),
            speed_us=hosting.speed_us,
            overflow=hosting.overflow,
            overflow_us=hosting.overflow_us,
            kv_capacity=pool.budget_bytes,
            kv_free=pool.budget_bytes,
        )

    def close(self) -> None:
        """Let go of what is served now."""
        if self.hosting is not None:
            self.hosting.close()
        self.hosting = None

    def mover(self, server: StageServer, room: Room) -> Rebalancer:
        """Looks whether the swarm needs this node elsewhere. `room`: what it could give before it held anything."""
        assert self.hosting is not None
        return Rebalancer(
            self._gossip,
            self._host.node,
            bytes.fromhex(self._manifest.digest),
            self._host.shape(self._manifest),
            replace(room, speed=speed_of(self.hosting.speed_us), overflow_speed=speed_of(self.hosting.overflow_us)),
            BlockChoice(*self.hosting.layers, self.hosting.overflow, ""),
            _Served(self, server),
        )

    async def move(self, server: StageServer, block: BlockChoice) -> bool:
        """Exchange the block; whether it was. Raises SwarmError when the new one cannot be had: the old one stays.

        The new block is loaded beside the old one, which serves on, where memory allows. Where it does not, the old
        one goes first, unless a request could have used it.
        """
        layers = (block.first, block.last)
        assert self.hosting is not None
        beside = self._host.fits(self._manifest, layers)
        if not beside and not self._may_unload():
            return False
        self._host.report(Notice(f"moving from {_say(self.hosting.layers)} to {_say(layers)}: {block.reason}"))
        moved = await (self._load_beside(server, layers) if beside else self._load_instead(server, layers))
        if moved:
            self._host.report(Notice(f"serving {_say(layers)} now"))
        return moved

    async def _load_beside(self, server: StageServer, layers: Layers) -> bool:
        new = await self.load(layers)
        if new is None or not await _quiet(server) or self._stopping.is_set():
            return False
        server.exchange(new.hosted)
        self.take(new)
        tidy(self._host.device, *self._host.more)
        return True

    async def _load_instead(self, server: StageServer, layers: Layers) -> bool:
        assert self.hosting is not None
        before = self.hosting.layers
        server.exchange(None)
        self._gossip.publish(state="joining", claim=layers)
        self.close()
        tidy(self._host.device, *self._host.more)
        try:
            new = await self.load(layers)
        except SwarmError as why:
            await self._restore(server, before, why)
            raise
        if new is None or self._stopping.is_set():
            return False
        server.exchange(new.hosted)
        self.take(new)
        return True

    def _may_unload(self) -> bool:
        members = members_of(self._gossip, bytes.fromhex(self._manifest.digest))
        return may_unload(self._host.shape(self._manifest), id_text(self._host.node), members)

    async def _restore(self, server: StageServer, layers: Layers, why: SwarmError) -> None:
        """The old layers again. A node that gets neither ends with a line that says so."""
        try:
            old = await self.load(layers)
        except SwarmError as error:
            text = f"could load neither the new layers ({why}) nor {_say(layers)} again: {error}"
            self._life.end(text)
            raise RunError(text) from error
        if old is not None:
            server.exchange(old.hosted)
            self.take(old)


@dataclass(frozen=True)
class _Served:
    """The block and who serves it, for the rebalancer."""

    manager: BlockManager
    server: StageServer

    @property
    def idle(self) -> bool:
        return not self.server.sessions.busy and not self.server.draining

    async def move(self, block: BlockChoice) -> bool:
        return await self.manager.move(self.server, block)


async def _quiet(server: StageServer) -> bool:
    """Whether the stage is without a run within QUIET_WAIT_S: nothing is exchanged under a run."""
    for _ in range(int(QUIET_WAIT_S / QUIET_LOOK_S)):
        if not server.sessions.busy:
            return True
        await asyncio.sleep(QUIET_LOOK_S)
    return False


def _say(layers: Layers) -> str:
    return say_layers([layers])
