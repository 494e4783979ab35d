"""A node's life: enter or found a swarm, take a block, serve it, leave. Wires the rooms; decides nothing itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

import receipts
from receipts.rows import RowStore
from swarm import __version__
from swarm.config import DEFAULT_MODEL, JoinConfig
from swarm.entry import enter_by_invite, find_on_lan
from swarm.errors import PeerError, RunError, SwarmError, UsageError
from swarm.events import Notice, Report
from swarm.greeting import greeting
from swarm.hosting import Hosting, load_hosting, settle_block
from swarm.identity import Identity, write_private
from swarm.mesh.gossip import Gossip
from swarm.mesh.invite import Invite, make_invite, parse_invite_untrusted
from swarm.mesh.lan import LanNode, announce
from swarm.mesh.membership import Membership
from swarm.mesh.record import NodeRecord
from swarm.mesh.saved import Saved, load, save
from swarm.model.checkpoint import Checkpoint, open_model
from swarm.model.device import Hardware, choose_device, describe, usable_cores
from swarm.model.dtype import choose_dtype, dtype_name
from swarm.model.store import ModelStore
from swarm.net.address import Address, format_address
from swarm.net.nodeid import id_text
from swarm.net.peer import Peer
from swarm.net.portmap import kept_port
from swarm.net.reach import Reach
from swarm.net.relay import Relay
from swarm.net.switchboard import Switchboard
from swarm.ring.notary import Notary, open_log, salted, software
from swarm.ring.stage import StageServer
from swarm.ring.witness import NotaryServer
from swarm.serve.mesh import mesh_status
from swarm.serve.nodeview import node_view
from swarm.state import LAST_INVITE, locked

log = logging.getLogger(__name__)

PUBLISH_EVERY_S = 2.0
LEAVE_SECONDS = 15.0


@dataclass(frozen=True)
class Ready:
    """What a node says when it serves. `layers` is [first, last); `listen` and `advertise` are host:port."""

    node: str
    listen: str
    advertise: str
    invite: str
    model: str
    layers: tuple[int, int]
    device: str
    dtype: str

    def as_json(self) -> dict[str, Any]:
        """The fields of the ready event."""
        return asdict(self)


async def serve_block(config: JoinConfig, ready: Callable[[Ready], None], report: Report) -> int:
    """Run a node until SIGTERM, Ctrl-C or a fatal finding. Returns the exit code. Raises SwarmError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with locked(config.member.state) as state:
        node = asyncio.create_task(_Life(config, state, stop, report).run(ready))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({node, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not node.done():
            # Loading cannot be interrupted halfway through a layer; a serving node leaves by itself when told.
            await asyncio.wait({node}, timeout=config.grace_s + LEAVE_SECONDS)
        if not node.done():
            node.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await node
    return 0


class _Life:
    """One life of a node, from the socket to the goodbye."""

    def __init__(self, config: JoinConfig, state: Path, stop: asyncio.Event, report: Report) -> None:
        self.config, self.state, self.stop, self.report = config, state, stop, report
        self.device = choose_device(config.gpu)
        self.dtype = choose_dtype(config.dtype, self.device)
        self.threads = config.threads or usable_cores()
        self.hardware = describe(self.device)
        self.identity = Identity.load_or_create(state)
        self.store = ModelStore(config.member.models)
        self.server: StageServer | None = None
        self.fatal: str | None = None

    async def run(self, ready: Callable[[Ready], None]) -> None:
        """Enter, load, serve, leave. Raises SwarmError."""
        config = self.config
        async with AsyncExitStack() as stack:
            board = await stack.enter_async_context(
                Switchboard(self.identity, opened=self._opened, closed=self._closed)
            )
            listening = await board.listen(*config.listen)
            reachable = await self._addresses(stack, listening)
            saved, checkpoint = await _enter(config, self.state, self.identity, board, self.store, self.report)
            about = _about(config, self.identity, reachable, checkpoint, self.hardware.name, dtype_name(self.dtype))
            gossip = await stack.enter_async_context(
                Gossip(board, self.identity.sign, saved, about, clashed=self._clashed, kept=self._keep)
            )
            manifest = checkpoint.manifest
            layers = config.layers or await settle_block(config, gossip, manifest, self.device, self.dtype)
            Reach(
                board,
                addresses=lambda: reachable,
                relay=config.member.relay,
                offers_relay=lambda: config.offer_relay,
                admitted=gossip.admitted,
            )
            relayed = Relay(board, reachable, admitted=gossip.admitted).routes() if config.offer_relay else ()
            view = node_view(lambda: mesh_status(gossip, board), manifest, more=relayed)
            board.http = await stack.enter_async_context(view)
            hosting = await self._load(saved.ref, layers)
            if hosting is None:
                return
            await self._serve(stack, board, gossip, checkpoint, hosting)
            gossip.publish(
                state="serving",
                layers=layers,
                claim=None,
                speed_us=hosting.speed_us,
                kv_capacity=hosting.hosted.pool.budget_bytes,
                kv_free=hosting.hosted.pool.budget_bytes,
            )
            if config.member.lan:
                digest = bytes.fromhex(manifest.digest)
                here = LanNode(saved.membership.swarm, self.identity.id, digest, saved.membership.open)
                await stack.enter_async_context(announce(here, listening[1], [host for host, _ in reachable]))
            invite = _invite(saved, self.identity, reachable, gossip).text()
            _remember(self.state, invite)
            ready(
                Ready(
                    node=id_text(self.identity.id),
                    listen=format_address(listening),
                    advertise=format_address(reachable[0]),
                    invite=invite,
                    model=saved.ref,
                    layers=layers,
                    device=hosting.hosted.device,
                    dtype=dtype_name(self.dtype),
                )
            )
            await self._until_told(gossip)

    async def _addresses(self, stack: AsyncExitStack, listening: Address) -> list[Address]:
        """Where others may dial this node, best first."""
        found = _reachable(self.config, listening)
        if not self.config.map_port:
            return found
        inner = next((a for a in found if ":" not in a[0]), found[0])
        try:
            mapping = await stack.enter_async_context(kept_port(inner, lambda fresh: None))
        except PeerError as error:
            self.report(Notice(f"the router maps no port ({error}); forward one yourself and say so with --advertise"))
            return found
        self.report(Notice(f"the router forwards {format_address(mapping.outer)} to this node"))
        return [mapping.outer, *found]

    async def _load(self, ref: str, layers: tuple[int, int]) -> Hosting | None:
        """The loaded block; None when the node is told to stop first."""
        ids = self.identity.id
        work = asyncio.to_thread(
            load_hosting, self.config, ref, self.store, layers, self.device, self.dtype, ids, self.threads, self.report
        )
        loading, stopping = asyncio.ensure_future(work), asyncio.create_task(self.stop.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not loading.done():
            loading.cancel()
            return None
        return loading.result()

    async def _serve(
        self, stack: AsyncExitStack, board: Switchboard, gossip: Gossip, checkpoint: Checkpoint, hosting: Hosting
    ) -> None:
        """Start the stage, and all that answers beside it."""
        notary = _notary(self.config, self.state, self.identity, checkpoint, hosting, self.hardware)
        stack.callback(notary.close)
        server = StageServer(
            hosting.hosted,
            board,
            hosting.limits,
            reach=greeting(board, gossip),
            admitted=gossip.admitted,
            threads=self.threads,
            notary=notary,
        )
        self.server = server
        for kind, handler in {**server.handlers(), **NotaryServer(notary, gossip.admitted).handlers()}.items():
            board.handle(kind, handler)
        for work in (server.run(), _publish(gossip, server)):
            stack.push_async_callback(_ended, asyncio.create_task(work))

    async def _until_told(self, gossip: Gossip) -> None:
        """Serve; then let open runs finish."""
        await self.stop.wait()
        if self.fatal is not None:
            raise RunError(self.fatal)
        self.report(Notice("leaving: open runs may finish, no new ones are taken"))
        gossip.publish(state="draining")
        assert self.server is not None
        await self.server.drain(self.config.grace_s)

    def _opened(self, peer: Peer) -> None:
        if self.server is not None:
            self.server.peer_opened()

    def _closed(self, peer: Peer) -> None:
        if self.server is not None:
            self.server.peer_closed(peer)

    def _clashed(self, text: str) -> None:
        """Another process has this key: two cannot serve under one name."""
        self.fatal = text
        self.stop.set()

    def _keep(self, saved: Saved) -> None:
        """A full disk must not end a node that serves."""
        try:
            save(self.state, saved)
        except SwarmError as error:
            log.warning("%s", error)


async def _enter(
    config: JoinConfig, state: Path, identity: Identity, board: Switchboard, store: ModelStore, report: Report
) -> tuple[Saved, Checkpoint]:
    """The swarm that this node belongs to, and the model that it serves."""
    member = config.member
    invite = parse_invite_untrusted(member.invite) if member.invite is not None else None
    if invite is not None:
        checkpoint = await _checkpoint(config, invite.ref, store, report)
        digest = bytes.fromhex(checkpoint.manifest.digest)
        invite.require_model(digest, config.model or invite.ref)
        return await enter_by_invite(board, invite, "node", digest), checkpoint
    known = load(state, identity.id)
    if known is not None:
        checkpoint = await _checkpoint(config, known.ref, store, report)
        if bytes.fromhex(checkpoint.manifest.digest) == known.model:
            return known, checkpoint
        report(Notice(f"this state folder belonged to a swarm for {known.ref}; starting anew for {config.model}"))
    if member.lan and known is None:
        model = b""
        if config.model is not None:
            model = bytes.fromhex((await _checkpoint(config, config.model, store, report)).manifest.digest)
        found = await find_on_lan(board, "node", model, report)
        if found is not None:
            return found, await _checkpoint(config, found.ref, store, report)
    checkpoint = await _checkpoint(config, DEFAULT_MODEL, store, report)
    digest = bytes.fromhex(checkpoint.manifest.digest)
    return Saved(Membership.found(identity.id, config.open_swarm), digest, config.model or DEFAULT_MODEL), checkpoint


async def _checkpoint(config: JoinConfig, ref: str, store: ModelStore, report: Report) -> Checkpoint:
    """The model's checkpoint; of a hub model only what the asked layers need is fetched here."""
    checkpoint = await asyncio.to_thread(open_model, config.model or ref, store, config.layers or (0, 1), report)
    if config.layers is not None:
        n = checkpoint.manifest.n_layers
        if config.layers[1] > n:
            raise UsageError(
                f"expected --layers within 0:{n}, found {config.layers[0]}:{config.layers[1]}; "
                f"{checkpoint.manifest.model} has {n} layers"
            )
    return checkpoint


def _notary(
    config: JoinConfig, state: Path, identity: Identity, checkpoint: Checkpoint, hosting: Hosting, device: Hardware
) -> Notary:
    """What this node signs with and says of itself."""
    log = open_log(state / "log", identity.id)
    private = (salted("uuid", device.uuid),) if device.uuid else ()
    claims = receipts.Hardware(
        device=device.name[:100],
        type=device.kind,
        memory_bytes=device.memory_bytes,
        driver=device.driver[:100],
        cpu=describe(torch.device("cpu")).name[:100],
        cores=device.cores,
        uuid=private[0].digest if private else None,
        us_per_layer=dict(zip(("1", "8", "64"), hosting.speed_us, strict=True)),
    )
    return Notary(
        author=log.author(identity.sign),
        log=log,
        software=software(),
        manifest=checkpoint.manifest.digest,
        weights=checkpoint.manifest.weights_digest,
        hardware=claims,
        private=private,
        rows=RowStore(state / "rows"),
        disclose=config.disclose,
    )


def _about(
    config: JoinConfig,
    identity: Identity,
    reachable: list[Address],
    checkpoint: Checkpoint,
    device: str,
    dtype: str,
) -> NodeRecord:
    manifest = checkpoint.manifest
    return NodeRecord(
        identity.id,
        b"",
        0,
        0,
        0,
        state="joining",
        addresses=tuple(reachable),
        relay=config.offer_relay,
        model=bytes.fromhex(manifest.digest),
        n_layers=manifest.n_layers,
        device=device[:64],
        dtype=dtype,
        owner=config.owner[:64],
        software=f"wanswarm {__version__}",
    )


def _reachable(config: JoinConfig, listening: Address) -> list[Address]:
    """Addresses that others may dial, best first."""
    if config.advertise is not None:
        return [config.advertise]
    host, port = listening
    if host not in ("0.0.0.0", "::"):
        return [(host, port)]
    found = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family.name in ("AF_INET", "AF_INET6") and "%" not in entry.address
    ]
    public = sorted((a for a in found if not a.startswith(("127.", "::1"))), key=lambda a: ":" in a)
    return [(address, port) for address in (public or ["127.0.0.1"])[:8]]


def _invite(saved: Saved, identity: Identity, reachable: list[Address], gossip: Gossip) -> Invite:
    others = [(v.record.node, v.record.addresses) for v in gossip.members()[1:] if v.standing == "up"]
    members = [(identity.id, tuple(reachable)), *((node, addresses) for node, addresses in others[:3] if addresses)]
    return make_invite(gossip.membership, saved.model, saved.ref, members, time.time())


def _remember(state: Path, invite: str) -> None:
    """So that `swarm generate` on this machine needs no invite."""
    try:
        write_private(state / LAST_INVITE, invite.encode())
    except OSError as error:
        log.warning("the invite could not be kept in %s: %s", state, error)


async def _publish(gossip: Gossip, server: StageServer) -> None:
    """Tell the swarm how busy this node is."""
    while True:
        await asyncio.sleep(PUBLISH_EVERY_S)
        pool = server.hosted.pool
        gossip.publish(sessions=len(server.sessions), kv_free=max(0, pool.budget_bytes - pool.used_bytes))


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a task of the node failed: %r", error)
