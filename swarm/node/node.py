"""A node's life: enter or found a swarm, take a block, serve it, leave. Wires the rooms; decides nothing itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from swarm.base.address import Address, format_address
from swarm.base.config import JoinConfig
from swarm.base.errors import DeviceError, PeerError, RunError
from swarm.base.events import Notice, Report
from swarm.base.files import remove_torn
from swarm.base.nodeid import id_text
from swarm.base.owner import OwnerDesk
from swarm.base.swarm_state import SwarmState
from swarm.discovery.bootstrap_node import check_layers, enter_as_node
from swarm.discovery.connect import MemberConnector
from swarm.discovery.control import admit_command, control_port
from swarm.discovery.introducers import MemberIntroducer
from swarm.discovery.lan_admission import PairingDoor
from swarm.discovery.rtt_probing import keep_scouting
from swarm.discovery.state_dir import RememberedSwarm, locked, remember_invite
from swarm.mesh.gossip import Gossip
from swarm.mesh.lan import Announcement, LanNode, announce
from swarm.mesh.messages import HELLO
from swarm.mesh.pairing import PAIR
from swarm.mesh.record import MAX_ADDRESSES
from swarm.mesh.saved import Saved
from swarm.mesh.status import mesh_status
from swarm.model.device import choose_device, describe_all, usable_cores
from swarm.model.dtype import common_dtype, dtype_name
from swarm.model.files.manifest import Manifest
from swarm.model.files.store import ModelStore
from swarm.model.gpu import first_line
from swarm.model.quant.native import warn_of_none
from swarm.model.weights_as import choose_weights
from swarm.net.identity import Identity
from swarm.net.switchboard import Switchboard
from swarm.net.traversal.portmap import kept_port
from swarm.net.traversal.reach import Reach
from swarm.net.traversal.relay import Relay
from swarm.net.traversal.webdoor import door_routes
from swarm.node.address_check import keep_judging
from swarm.node.bandwidth import RateServer, measure_rates
from swarm.node.benchmark_cache import ProbeCache
from swarm.node.block_manager import BlockManager
from swarm.node.host import Host, Hosting, settle_block
from swarm.node.let_in import LetIn
from swarm.node.member_log import keep_log
from swarm.node.node_record import moved, near_hosts, node_record, notary_of, own_addresses, own_invite
from swarm.node.weights import learn_manifest
from swarm.ring.recomputing import RECOMPUTE
from swarm.ring.witness_service import AUDIT, NotaryServer
from swarm.serve.nodeview import node_view
from swarm.stage.recomputing import RecomputeServer
from swarm.stage.server import StageServer

log = logging.getLogger(__name__)

PUBLISH_EVERY_S = 2.0
LEAVE_SECONDS = 15.0
GOODBYE_S = 0.5
"""What a node whose device is lost takes to say so."""
STOPPED_WHILE_LOADING = 130
"""Exit code of a node that was told to stop before it served: the shell's code for Ctrl-C."""
RATES_AFTER_S = 10.0
ANY_HOST = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Ready:
    """What a node says when it serves. `layers` is [first, last); `listen` and `advertise` are host:port; `fingerprint`
    of its kernels, "" where they were not measured."""

    node: str
    listen: str
    advertise: str
    invite: str
    model: str
    layers: tuple[int, int]
    device: str
    dtype: str
    fingerprint: str = ""

    def as_json(self) -> dict[str, Any]:
        """The fields of the ready event."""
        return asdict(self)


async def serve_block(
    config: JoinConfig,
    ready: Callable[[Ready], None],
    report: Report,
    stop: asyncio.Event,
    desk: OwnerDesk | None = None,
) -> int:
    """Run a node until `stop` is set or a fatal finding. Returns the exit code. Raises SwarmError.

    A serving node lets open runs end; one that still loads stops at once. `desk`: where its owner is asked.
    """
    with locked(config.member.state) as state:
        life = _Life(config, state, stop, report, desk or OwnerDesk(report, admit_command(state)))
        node = asyncio.create_task(life.run(ready))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({node, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        serves = life.server is not None
        if serves and not node.done():
            await asyncio.wait({node}, timeout=config.grace_s + LEAVE_SECONDS)
        if not node.done():
            node.cancel()  # nobody depends on it yet: what it was loading is not waited for
        try:
            await node
        except asyncio.CancelledError:
            return 0 if serves else STOPPED_WHILE_LOADING
    return 0 if serves else STOPPED_WHILE_LOADING


@dataclass(frozen=True)
class _Inside:
    """What a node has once it is a member. from_members: its manifest came from other members; reachable: where others
    may dial it, best first."""

    board: Switchboard
    gossip: Gossip
    saved: Saved
    manifest: Manifest
    from_members: bool
    listening: Address
    reachable: list[Address]


class _Life:
    """One life of a node, from the socket to the goodbye."""

    def __init__(self, config: JoinConfig, state: Path, stop: asyncio.Event, report: Report, desk: OwnerDesk) -> None:
        self.config, self.state, self.stop, self.report, self.desk = config, state, stop, report, desk
        gpus = (config.gpu,) if config.gpu is None or isinstance(config.gpu, int) else config.gpu
        self.device, *more = (choose_device(gpu) for gpu in gpus)
        self.dtype = common_dtype(config.dtype, [self.device, *more])
        self.hardware = describe_all([self.device, *more])
        self.identity = Identity.load_or_create(state)
        self.store = ModelStore(config.member.models)
        remove_torn(config.member.models)
        threads = config.threads or usable_cores()
        spare = torch.device("cpu") if config.overflow_bytes is not None else None
        self.kept = ProbeCache(state)
        self.host = Host(
            config,
            self.store,
            self.identity.id,
            self.device,
            self.dtype,
            threads,
            report,
            self.kept,
            spare,
            weights=choose_weights(config.weights_as, config.dtype, self.device),
            more=tuple(more),
        )
        self.server: StageServer | None = None
        self.announcement: Announcement | None = None
        self.fatal: str | None = None
        self.device_lost = False

    async def run(self, ready: Callable[[Ready], None]) -> None:
        """Enter, load, serve, leave. Raises SwarmError."""
        config = self.config
        if self.device.type == "cpu":
            warn_of_none(self.report)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(control_port(self.state, self.desk))
            inside = await self._enter(stack)
            board, gossip, manifest = inside.board, inside.gossip, inside.manifest
            room = self.host.room(manifest)
            layers = config.layers or await settle_block(self.host, gossip, manifest, room)
            await self._open_doors(stack, inside)
            ref = config.model or inside.saved.ref
            tenant = BlockManager(self.host, board, gossip, manifest, ref, inside.from_members, self.stop, self)
            hosting = await tenant.load(layers)
            if hosting is None:
                return
            stack.callback(tenant.close)
            server = await self._serve(stack, board, gossip, manifest, hosting)
            tenant.take(hosting)
            if config.layers is None:
                looking = tenant.mover(server, room).keep_looking()
                stack.push_async_callback(_ended, asyncio.create_task(looking))
            invite = await self._let_others_in(stack, inside)
            ready(
                Ready(
                    node=id_text(self.identity.id),
                    listen=format_address(inside.listening),
                    advertise=format_address(inside.reachable[0]),
                    invite=invite,
                    model=inside.saved.ref,
                    layers=layers,
                    device=hosting.hosted.device,
                    dtype=hosting.hosted.block.computes_in,
                    fingerprint=hosting.hosted.fingerprint,
                )
            )
            await self._until_told(gossip)

    async def _enter(self, stack: AsyncExitStack) -> _Inside:
        """Listen, and become a member of a swarm, or found one. Raises SwarmError."""
        config = self.config
        # Anybody may hold a receipt and have it opened.
        open_kinds = (HELLO, AUDIT, RECOMPUTE, PAIR)
        board = await stack.enter_async_context(
            Switchboard(self.identity, proxy=config.member.http_proxy, open_kinds=open_kinds)
        )
        listening = await board.listen(*config.listen)
        reachable = await self._addresses(stack, listening)
        saved, manifest = await enter_as_node(
            config, self.state, self.identity, board, self.store, self.report, self.desk
        )
        device, dtype = self.hardware.name, dtype_name(self.dtype)
        about = node_record(config, self.identity, reachable, saved.model, device, dtype)
        gossip = await stack.enter_async_context(
            Gossip(board, saved, about, store=RememberedSwarm(self.state), life=self)
        )
        from_members = manifest is None
        if manifest is None:
            manifest = await learn_manifest(gossip, board, saved)
            check_layers(config, manifest)
        known = None if config.probe else self.kept.rates()
        rates = {} if known is None else {"up_kbps": known.up_kbps, "down_kbps": known.down_kbps}
        gossip.publish(n_layers=manifest.n_layers, **rates)
        return _Inside(board, gossip, saved, manifest, from_members, listening, reachable)

    async def _open_doors(self, stack: AsyncExitStack, inside: _Inside) -> None:
        """Ways to and from nodes that cannot be dialled, and the node's own page."""
        config, board, gossip, reachable = self.config, inside.board, inside.gossip, inside.reachable
        if config.member.punch:
            Reach(
                board,
                addresses=reachable,
                relay=config.member.relay,
                offers_relay=config.offer_relay,
                introducer=MemberIntroducer(board, gossip),
            )
            self._judge_addresses(stack, gossip, board, inside.listening, reachable)
        relayed = Relay(board, reachable).routes() if config.offer_relay else ()
        view = node_view(_Page(self, gossip, board), inside.manifest, [*door_routes(board), *relayed])
        board.http = await stack.enter_async_context(view)

    async def _let_others_in(self, stack: AsyncExitStack, inside: _Inside) -> str:
        """Be found on the local network, admit whom the owner agrees to; the invite for all others."""
        config, board, gossip, saved = self.config, inside.board, inside.gossip, inside.saved
        if config.member.lan:
            digest = bytes.fromhex(inside.manifest.digest)
            here = LanNode(saved.membership.swarm, self.identity.id, digest, saved.membership.open)
            self.announcement = await stack.enter_async_context(
                announce(here, inside.listening[1], near_hosts(config, inside.listening))
            )
        made = own_invite(saved, self.identity, inside.reachable, gossip)
        if config.member.lan and not saved.membership.open:
            let_in = LetIn(self.state, saved, made, self.report)
            door = PairingDoor(board.id, gossip.membership, self.desk, board, let_in)
            board.handle(PAIR, door.handle)
        invite = made.text()
        remember_invite(self.state, invite)
        return invite

    async def _addresses(self, stack: AsyncExitStack, listening: Address) -> list[Address]:
        """Where others may dial this node, best first; last the proxy in front of it, for those who need HTTP."""
        own = own_addresses(self.config, listening)
        if self.config.map_port:
            inner = next((a for a in own if ":" not in a[0]), own[0])
            try:
                mapping = await stack.enter_async_context(kept_port(inner, lambda fresh: None))
            except PeerError as error:
                self.report(
                    Notice(f"the router maps no port ({error}); forward one yourself and say so with --advertise")
                )
            else:
                self.report(Notice(f"the router forwards {format_address(mapping.outer)} to this node"))
                own = [mapping.outer, *own]
        return self._with_proxy(own)

    def _with_proxy(self, own: Sequence[Address]) -> list[Address]:
        behind = [self.config.relay_at] if self.config.relay_at is not None else []
        return list(dict.fromkeys([*own[: MAX_ADDRESSES - len(behind)], *behind]))

    def _judge_addresses(
        self, stack: AsyncExitStack, gossip: Gossip, board: Switchboard, listening: Address, reachable: list[Address]
    ) -> None:
        """Tell only of addresses that this machine has now and that members can dial, unless the user said which to
        listen on or to tell."""
        if self.config.advertise is None and self.config.listen[0] in ANY_HOST:
            keeping = self._keep_addresses(gossip, board, listening, reachable)
            stack.push_async_callback(_ended, asyncio.create_task(keeping))

    async def _keep_addresses(
        self, gossip: Gossip, board: Switchboard, listening: Address, reachable: list[Address]
    ) -> None:
        """For ever: judge them, and begin anew when the machine has others."""

        def tell(told: tuple[Address, ...]) -> None:
            gossip.publish(addresses=tuple(self._with_proxy(told)))

        def read() -> list[Address]:
            return own_addresses(self.config, listening)

        own = await asyncio.to_thread(read)
        while True:
            judging = asyncio.create_task(keep_judging(gossip, board, reachable, tell, self.report))
            try:
                fresh = await moved(read, own)
            finally:
                await _ended(judging)
            mapped = [address for address in reachable if address not in own and address != self.config.relay_at]
            reachable, own = self._with_proxy([*mapped, *fresh]), fresh
            self.report(Notice(f"this machine has other addresses now: {', '.join(map(format_address, fresh))}"))
            tell(tuple(reachable))
            if self.announcement is not None:
                await self.announcement.tell(near_hosts(self.config, listening))

    async def _serve(
        self, stack: AsyncExitStack, board: Switchboard, gossip: Gossip, manifest: Manifest, hosting: Hosting
    ) -> StageServer:
        """Start the stage, and all that answers beside it."""
        notary = notary_of(self.config, self.state, self.identity, manifest, hosting, self.hardware, self.report)
        stack.callback(notary.close)
        server = StageServer(
            hosting.hosted,
            board,
            hosting.limits,
            connector=MemberConnector(board, gossip),
            threads=self.host.threads,
            notary=notary,
            owner=self,
        )
        self.server = server
        board.watch(server)
        recomputing = RecomputeServer(server, gossip, self.config.recompute)
        services = (server, NotaryServer(notary, gossip), RateServer(gossip), recomputing)
        for kind, handler in (pair for service in services for pair in service.handlers().items()):
            board.handle(kind, handler)
        scouting = keep_scouting(gossip, board.id, bytes.fromhex(manifest.digest), manifest.n_layers)
        telling = keep_log(gossip, board.id)
        for work in (
            self._run_stage(server),
            _publish(gossip, server),
            _tell_rates(gossip, board, self.kept),
            scouting,
            telling,
        ):
            stack.push_async_callback(_ended, asyncio.create_task(work))
        return server

    async def _run_stage(self, server: StageServer) -> None:
        """A member that computes nothing is worse than one that is gone: when the stage ends, so does the node."""
        try:
            await server.run()
        except Exception as error:
            log.exception("the stage failed")
            self.end(f"the stage of this node failed ({first_line(error)}); start it again")

    async def _until_told(self, gossip: Gossip) -> None:
        """Serve; then let open runs finish."""
        await self.stop.wait()
        if self.device_lost:
            gossip.publish(state="draining")  # told at once, so that nobody plans with this node; runs know already
            await asyncio.sleep(GOODBYE_S)
            raise DeviceError(self.fatal or "")
        if self.fatal is not None:
            raise RunError(self.fatal)
        self.report(Notice("leaving: open runs may finish, no new ones are taken"))
        gossip.publish(state="draining")
        assert self.server is not None
        await self.server.drain(self.config.grace_s)

    def end(self, why: str) -> None:
        """This life cannot go on: another process has this key, or no layers can be loaded any more."""
        self.fatal = why
        self.stop.set()

    def lose_device(self, why: str) -> None:
        """The device answers no more, and will not answer this process again."""
        self.device_lost = True
        self.end(
            f"{self.hardware.name} answers no more ({why}); this node has left the swarm: start it again, and if that "
            "fails too, look at the driver's log (dmesg) or restart the machine"
        )


@dataclass(frozen=True)
class _Page:
    """What the node's own page is made of."""

    life: _Life
    gossip: Gossip
    board: Switchboard

    @property
    def stage(self) -> StageServer | None:
        return self.life.server

    def status(self) -> SwarmState:
        return mesh_status(self.gossip, self.board)


async def _publish(gossip: Gossip, server: StageServer) -> None:
    """Tell the swarm how busy this node is."""
    while True:
        await asyncio.sleep(PUBLISH_EVERY_S)
        if server.hosted is not None:
            gossip.publish(sessions=len(server.sessions), kv_free=server.hosted.pool.free_bytes)


async def _tell_rates(gossip: Gossip, board: Switchboard, kept: ProbeCache) -> None:
    """Measure the way to two neighbours, once there are any."""
    while True:
        await asyncio.sleep(RATES_AFTER_S)
        rates = await measure_rates(gossip, board)
        if rates.up_kbps or rates.down_kbps:
            gossip.publish(up_kbps=rates.up_kbps, down_kbps=rates.down_kbps)
            kept.keep_rates(rates)
            return


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a task of the node failed: %r", error)
