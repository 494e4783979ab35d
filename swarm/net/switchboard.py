"""The switchboard: listens, dials, admits, and owns every peer and every task of the network layer."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

from swarm.base.address import Address
from swarm.base.errors import PeerError, UsageError
from swarm.base.nodeid import NodeId, Signer, short_id
from swarm.base.tasks import OwnedTasks
from swarm.net.acceptor import Acceptor, Http
from swarm.net.channel.channel import STRANGER_READ_BYTES, Channel
from swarm.net.channel.handshake import ChannelKeys
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.opening import open_channel
from swarm.net.dial import connect
from swarm.net.dialer import Dialer
from swarm.net.members import Members
from swarm.net.peer import Handler, Peer
from swarm.net.strangers import Strangers

log = logging.getLogger(__name__)


FULL = "busy: that node has"
"""How a refusal for want of room begins, at the other side as well."""


class Connector(Protocol):
    """Ways to a node; `swarm.net.traversal.reach.Reach` knows more of them than dialling."""

    async def connect(self, node: NodeId, addresses: Sequence[Address], timeout: float) -> None:
        """Make `node` a peer of the switchboard within `timeout` seconds, or raise PeerError."""


class PeerWatcher(Protocol):
    """Is told of peers that come and go."""

    def peer_opened(self, peer: Peer) -> None: ...

    def peer_closed(self, peer: Peer) -> None: ...


class Switchboard:
    """All connections of one node. Use as `async with`; leaving it says goodbye to every peer.

    `handlers`: what to do with each kind of message. `proxy`: see `open_tunnel`.
    `open_kinds`: what strangers may send; None: nobody is one. A peer is a stranger when it came by itself and is no
    member (`admitted`), until `Peer.admit`; it costs little, for seconds, in bounded number (`limits.for_strangers`).
    """

    def __init__(
        self,
        identity: Signer,
        handlers: Mapping[str, Handler] | None = None,
        limits: ChannelLimits | None = None,
        *,
        proxy: str | None = None,
        open_kinds: Collection[str] | None = None,
    ) -> None:
        self.identity = identity
        self.id: NodeId = identity.id
        self.limits = limits or ChannelLimits()
        self.connector: Connector | None = None
        """How `peer` connects to a node that is not connected, where that is not by dialling alone."""
        self.members: Members | None = None
        """Who is admitted whatever it said on its connection; gossip puts itself here."""
        self.inbound_edges: dict[NodeId, str] = {}
        """What to call the connection that a node makes to this one, where that is not "direct"."""
        self._handlers: dict[str, Handler] = dict(handlers or {})
        self._keys = ChannelKeys.make(identity, self.limits.message_bytes)
        self._contact = Dialer(self, proxy)
        self._door = Acceptor(self._keys, self.limits, self)
        self._watchers: list[PeerWatcher] = []
        self._open_kinds = None if open_kinds is None else frozenset(open_kinds)
        self._strangers = Strangers(self.limits, self)
        self._peers: dict[NodeId, Peer] = {}
        self._arrivals: dict[NodeId, asyncio.Future[Peer]] = {}
        self._dials: dict[NodeId, asyncio.Task[None]] = {}
        self._tasks = OwnedTasks(apart="the network layer")
        self._leaving = False

    @property
    def instance(self) -> bytes:
        """8 random bytes that name this life of the node."""
        return self._keys.instance

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
        await self._tasks.__aexit__()

    async def aclose(self, reason: str = "that node left") -> None:
        """Stop listening, say goodbye to every peer, and end every task."""
        self._leaving = True
        await asyncio.gather(*(peer.close(reason) for peer in self.peers()))
        self._tasks.cancel()
        self._door.close()

    @property
    def http(self) -> Http | None:
        """Makes the protocol of connections that begin like HTTP; None: they are closed. Set it at any time."""
        return self._door.http

    @http.setter
    def http(self, make: Http | None) -> None:
        self._door.http = make

    def handle(self, kind: str, handler: Handler) -> None:
        """Add the handler of one kind. Raises UsageError if there is one already."""
        if kind in self._handlers:
            raise UsageError(f"messages of kind {kind!r} have a handler already")
        self._handlers[kind] = handler

    def watch(self, watcher: PeerWatcher) -> None:
        """Tell `watcher` of each peer from now on."""
        self._watchers.append(watcher)

    @property
    def guarded(self) -> bool:
        """Whether there are strangers for it: whoever comes by himself and is no member."""
        return self._open_kinds is not None

    def admitted(self, node: NodeId) -> bool:
        """Whether `node` is a member: `members` says so, or nobody says who is one and nobody is a stranger."""
        return self._open_kinds is None if self.members is None else self.members.admitted(node)

    def peers(self) -> list[Peer]:
        """The peers that are connected now."""
        return list(self._peers.values())

    def get(self, node: NodeId) -> Peer | None:
        """The connected peer `node`, or None; one that is leaving counts no more."""
        peer = self._peers.get(node)
        return None if peer is None or peer.leaving else peer

    async def listen(self, host: str, port: int) -> Address:
        """Listen on host:port (port 0: any); returns what was bound. Raises UsageError when it cannot be had."""
        return self._door.open(host, port)

    @property
    def listening(self) -> list[Address]:
        """What this node listens on, as bound."""
        return self._door.addresses

    async def peer(self, node: NodeId, addresses: Sequence[Address], timeout: float = 10.0) -> Peer:
        """The connected peer `node`, dialled at `addresses` if it is not connected. Raises PeerError.

        Callers at the same time share one dial; a connection that `node` makes meanwhile counts as well.
        """
        present = self.get(node)
        if present is not None:
            return present
        if node == self.id:
            raise PeerError("a node cannot be its own peer")
        arrival = self.arrival(node)
        if node not in self._dials:
            dial = self._dials[node] = self.spawn(self._dial(node, tuple(addresses), timeout))
            dial.add_done_callback(lambda task: self._dials.pop(node, None))
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(arrival)
        except TimeoutError as exc:
            raise PeerError(f"node {short_id(node)} was not reached within {timeout:g} s") from exc
        finally:
            del arrival  # it has the error, which has this frame: together they would wait for the collector

    async def adopt(
        self,
        sock: socket.socket,
        *,
        initiator: bool,
        expect: NodeId | None,
        edge: str,
        claim: Callable[[], None] = lambda: None,
    ) -> Peer:
        """Make a peer of a socket that is connected already, in whatever way. Raises PeerError; owns the socket.

        `claim`: see `open_channel`.
        """
        channel = await open_channel(sock, self._keys, self.limits, initiator=initiator, expect=expect, claim=claim)
        return self._admit(channel, edge)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` as a task of this switchboard; a failure is logged and harms nothing else."""
        return self._tasks.spawn(work)

    # -- dialling

    def arrival(self, node: NodeId) -> asyncio.Future[Peer]:
        """A future of the next peer that `node` becomes; shared, so wait for it through `asyncio.shield`."""
        arrival = self._arrivals.get(node)
        if arrival is None:
            arrival = self._arrivals[node] = asyncio.get_running_loop().create_future()
            arrival.add_done_callback(lambda future: self._arrived(node, future))
        return arrival

    def _arrived(self, node: NodeId, arrival: asyncio.Future[Peer]) -> None:
        if self._arrivals.get(node) is arrival:
            del self._arrivals[node]

    def await_no_more(self, node: NodeId) -> None:
        """Whoever asked for the arrival of `node` gave up; callers of `peer`, whose dial still runs, have not."""
        if node not in self._dials and (arrival := self._arrivals.pop(node, None)) is not None:
            arrival.cancel()

    async def dial(
        self,
        node: NodeId,
        addresses: Sequence[Address],
        timeout: float,
        edge: str = "direct",
        claim: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect to `node` by dialling `addresses`; the plain way to reach a node. Raises PeerError.

        `edge`: what the connection is called, unless HTTP led there. `claim`: see `open_channel`.
        """
        opens = partial(open_channel, keys=self._keys, limits=self.limits, initiator=True, expect=node)
        channel, edge = await self._contact.dial(addresses, timeout, opens, edge, claim)
        self._admit(channel, edge)

    def welcome(self, sock: socket.socket, address: Address) -> None:
        """Take in a connection that came through the HTTP server, from `address`, as if it had been accepted here."""
        self._door.receive(sock, address[0], "http", address)

    @property
    def proxy(self) -> str | None:
        """The HTTP proxy that this process goes through, if any."""
        return self._contact.proxy

    async def proves(self, node: NodeId, address: Address, timeout: float) -> bool:
        """Whether `node` answers at `address`: a handshake up to the proof of its identity, and no further."""

        def enough() -> None:
            raise _Enough()

        try:
            async with asyncio.timeout(timeout):
                sock, _ = await connect([address], timeout)
                await open_channel(sock, self._keys, self.limits, initiator=True, expect=node, claim=enough)
        except _Enough:
            return True
        except (PeerError, TimeoutError):
            pass
        return False

    async def _dial(self, node: NodeId, addresses: Sequence[Address], timeout: float) -> None:
        try:
            if self.connector is None:
                await self.dial(node, addresses, timeout)
            else:
                await self.connector.connect(node, addresses, timeout)
        except PeerError as exc:
            self._failed(node, exc)
        except Exception:
            log.exception("dialling failed")
            self._failed(node, PeerError("dialling failed inside this node; see its log"))

    def _failed(self, node: NodeId, why: PeerError) -> None:
        """Tell whoever waits for `node`."""
        arrival = self._arrivals.get(node)
        if arrival is not None and not arrival.done():
            arrival.set_exception(why)
            arrival.exception()  # seen, also where every caller has stopped waiting

    # -- admitting

    def enter(self, channel: Channel, edge: str) -> None:
        """For the acceptor: somebody dialled this node and proved who it is."""
        try:
            self._admit(channel, self.inbound_edges.get(channel.remote, edge) if edge == "direct" else edge)
        except PeerError as exc:
            log.info("%s", exc)

    def _admit(self, channel: Channel, edge: str) -> Peer:
        """Make a peer of an authenticated channel, or refuse it with a goodbye. Raises PeerError then."""
        node = channel.remote
        reason = "that node is leaving" if self._leaving else None
        present = self._peers.get(node)
        if reason is None and present is None and len(self._peers) - len(self._strangers) >= self.limits.peers:
            reason = f"{FULL} {self.limits.peers} peers already"
        if reason is not None:
            channel.bound(self.limits.for_strangers, STRANGER_READ_BYTES)
            channel.start()
            channel.leave(reason)
            asyncio.get_running_loop().call_later(1.0, channel.close, reason)
            raise PeerError(f"node {short_id(node)} was refused: {reason}")
        if present is not None and (present.is_surpassed(channel, edge) or present.is_rival(channel)):
            present.settle(channel, edge, self.id)
            return present
        if present is not None:
            replaced = "replaced by a newer connection of the same node"
            present.drop(replaced) if present.instance == channel.instance else present.dismiss(replaced)
        arrival = self._arrivals.get(node)
        # Whoever this side waits for is none: this side says the hello, and more than an answer may come back at once.
        admitted = self._open_kinds is None or arrival is not None or self.admitted(node)
        open_kinds = None if admitted else self._open_kinds
        peer = Peer(channel, edge, self._handlers, self.limits, self, open_kinds)
        peer.on_closed = self._on_closed
        self._peers[node] = peer
        if peer.stranger:
            self._strangers.add(peer)
        if channel.closed_reason is not None:
            self._on_closed(peer)
            raise PeerError(channel.closed_reason)
        if arrival is not None and not arrival.done():
            arrival.set_result(peer)
        for watcher in self._watchers:
            watcher.peer_opened(peer)
        return peer

    def _on_closed(self, peer: Peer) -> None:
        self._strangers.discard(peer)
        if self._peers.get(peer.id) is peer:
            del self._peers[peer.id]
        for watcher in self._watchers:
            watcher.peer_closed(peer)


class _Enough(Exception):
    """Ends a handshake whose purpose is reached."""
