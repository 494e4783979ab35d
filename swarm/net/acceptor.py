"""The door of a node: connections that others make, from being accepted to a channel or to the HTTP server.

Until it has authenticated, a connection costs one task and a few bytes, for a bounded time and in bounded number.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable
from typing import Protocol, TypeAlias

from swarm.base.address import Address
from swarm.base.errors import PeerError
from swarm.base.hosts import host_key
from swarm.base.tasks import TaskOwner
from swarm.net.channel.channel import Channel
from swarm.net.channel.handshake import MAGIC, ChannelKeys
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.opening import open_channel
from swarm.net.channel.sockets import listening_sockets, read_exactly, remote_address

log = logging.getLogger(__name__)

Http: TypeAlias = Callable[[], asyncio.Protocol]
"""Makes the protocol that takes over a connection which begins like HTTP (an aiohttp `web.Server`)."""

_VERBS = (b"GET ", b"POST", b"HEAD", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC", b"PRI ")
_SNIFF_BYTES = 4
_FULL_PAUSE_SECONDS = 0.1
_HTTP_READ_BYTES = 16 * 1024
_TUNNEL = b"GET /swarm/"
"""How a request for a WebSocket begins: the door and the rooms of a relay."""


class TakesIn(TaskOwner, Protocol):
    """Owns the tasks of an acceptor, and gets what comes of them."""

    def enter(self, channel: Channel, edge: str) -> None:
        """The other side of `channel` has proved who it is."""


class Acceptor:
    """The listening sockets of one node.

    `http`: makes the protocol that takes over a connection which begins like HTTP; None: it is closed.
    """

    def __init__(self, keys: ChannelKeys, limits: ChannelLimits, owner: TakesIn) -> None:
        self.http: Http | None = None
        self._keys, self._limits, self._owner = keys, limits, owner
        self._sockets: list[socket.socket] = []
        self._pending: dict[asyncio.Task[None], str] = {}
        self._pending_hosts: Counter[str] = Counter()
        self._http_buffer = bytearray(_HTTP_READ_BYTES)

    @property
    def addresses(self) -> list[Address]:
        """What this node listens on, as bound."""
        return [sock.getsockname()[:2] for sock in self._sockets]

    @property
    def pending(self) -> int:
        """Connections that have not authenticated yet."""
        return len(self._pending)

    def open(self, host: str, port: int) -> Address:
        """Listen on host:port (port 0: any); returns what was bound. Raises UsageError when it cannot be had.

        "::" is every address of both families; where there is one family alone, its "any" is returned.
        """
        sockets = listening_sockets(host, port)
        for sock in sockets:
            self._sockets.append(sock)
            self._listen(sock)
        name = sockets[-1].getsockname()
        return name[0], name[1]

    def close(self) -> None:
        """Stop listening."""
        for sock in self._sockets:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self._sockets.clear()

    def _accept(self, listener: socket.socket) -> None:
        """Take what waits at a listener. No task: one that is cancelled as a connection comes loses it."""
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as exc:  # out of descriptors: wait for some to be given back
            log.warning("cannot accept a connection: %s", exc.strerror or exc)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(_FULL_PAUSE_SECONDS, self._listen, listener)
            return
        sock.setblocking(False)
        self.receive(sock, remote_address(sock)[0], "direct", None)

    def _listen(self, listener: socket.socket) -> None:
        if listener in self._sockets:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def receive(self, sock: socket.socket, host: str, edge: str, address: Address | None) -> None:
        """Begin with a connection from `host`. `address`: of the other end, where the socket does not tell it."""
        host = host_key(host)
        self._make_room(host)
        task = self._owner.spawn(self._welcome(sock, edge, address))
        self._pending[task] = host
        self._pending_hosts[host] += 1
        task.add_done_callback(self._forget_pending)
        # A task that is cancelled before its first step runs none of its own clean-up.
        task.add_done_callback(lambda done: sock.close() if done.cancelled() else None)

    def _make_room(self, host: str) -> None:
        """Close the oldest unauthenticated connection of `host`, or of all, when there is one too many."""
        if self._pending_hosts[host] >= self._limits.pending_per_host:
            next(task for task, other in self._pending.items() if other == host).cancel()
        elif len(self._pending) >= self._limits.pending:
            next(iter(self._pending)).cancel()

    def _forget_pending(self, task: asyncio.Task[None]) -> None:
        host = self._pending.pop(task)
        self._pending_hosts[host] -= 1
        if not self._pending_hosts[host]:
            del self._pending_hosts[host]

    async def _welcome(self, sock: socket.socket, edge: str, address: Address | None) -> None:
        """From an accepted socket to a peer, or to the HTTP server, within the handshake deadline."""
        try:
            async with asyncio.timeout(self._limits.handshake_seconds):
                head = await read_exactly(sock, _SNIFF_BYTES)
                if head in _VERBS and self.http is not None and address is None:
                    await self._hand_over(sock, head)
                    return
                if not MAGIC.startswith(head):
                    raise PeerError("expected a wanswarm node or HTTP, found another protocol")
                channel = await open_channel(
                    sock, self._keys, self._limits, initiator=False, head=head, address=address
                )
        except (PeerError, TimeoutError) as exc:
            log.debug("a connection was closed before it was set up: %s", exc)
            sock.close()
            return
        except BaseException:
            sock.close()
            raise
        self._owner.enter(channel, edge)

    async def _hand_over(self, sock: socket.socket, head: bytes) -> None:
        """Read the whole request head here, where the deadline and the size bound hold, then hand over."""
        assert self.http is not None
        loop = asyncio.get_running_loop()
        while b"\r\n\r\n" not in head:
            if len(head) > self._limits.idle_http_header_bytes:
                raise PeerError("the head of an HTTP request is too long")
            try:
                piece = await loop.sock_recv(sock, 4096)
            except OSError as exc:
                raise PeerError("the connection broke") from exc
            if not piece:
                raise PeerError("the connection ended within an HTTP request")
            head += piece
        inner = self.http()
        tunnel = head.startswith(_TUNNEL) and b"\nupgrade:" in head.lower()
        first = head if tunnel else alone(head)
        await loop.connect_accepted_socket(lambda: _HeadFirst(inner, first, self._http_buffer, tunnel), sock)


def alone(head: bytes) -> bytes:
    """The head of a request after which the connection is closed, without what came behind it."""
    line, end, rest = head.partition(b"\r\n")
    fields, blank, _ = rest.partition(b"\r\n\r\n")
    if not blank:  # no field at all
        return line + end + b"Connection: close\r\n\r\n"
    return line + end + b"Connection: close\r\n" + fields + blank


class _HeadFirst(asyncio.BufferedProtocol):
    """Gives `inner` the connection and, before anything else, the bytes that were read already.

    What comes later is read in small pieces, through one buffer for all connections: asyncio's own reads of 256 KiB are
    parsed whole, so that a crowd at the WebSocket door cost a third of a megabyte each. Only a tunnel has a later: what
    follows any other request is not looked at, since requests and rubbish behind one that takes long would pile up.
    """

    def __init__(self, inner: asyncio.Protocol, head: bytes, buffer: bytearray, tunnel: bool) -> None:
        self._inner, self._head, self._buffer, self._tunnel = inner, head, buffer, tunnel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inner.connection_made(transport)
        self._inner.data_received(self._head)
        self._head = b""

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._tunnel:
            self._inner.data_received(bytes(memoryview(self._buffer)[:nbytes]))

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)
