"""A WebSocket seen from the channel as an ordinary connected socket: to a relay, or to a node's door for HTTP.

The channel gets one end of a local socket pair; two loops move bytes between the other end and the WebSocket. It costs
a copy and keeps the channel free of a second kind of transport.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, TypeAlias

from swarm.base.address import Address, format_address
from swarm.base.errors import PeerError, let_go
from swarm.base.tasks import TaskOwner
from swarm.net.channel.sockets import tune

HTTPS_PORTS = (443,)
"""Where HTTPS is spoken: a proxy that ends TLS is in front of the node, for networks that let out no HTTP."""
MAX_FRAME_BYTES = 64 * 1024
RELAY_PATH = "/swarm/relay/"
"""Where a relay serves its rooms: behind it a room's token."""
_QUEUE_BYTES = 64 * 1024
"""Kernel buffer of the socket pair: small, so that urgent records do not queue in it."""

if TYPE_CHECKING:
    from aiohttp import ClientSession, ClientWebSocketResponse, web

Socket: TypeAlias = "ClientWebSocketResponse[bool] | web.WebSocketResponse"


async def open_tunnel(
    address: Address, path: str, tasks: TaskOwner, timeout: float, proxy: str | None
) -> socket.socket:
    """A connected socket that leads through a WebSocket at `address` and `path`. Raises PeerError.

    `tasks` owns the loops that move the bytes; they end with the socket. `proxy`: "http://host:port" of an HTTP proxy
    to go through, with CONNECT where HTTPS is spoken; None: straight there.
    """
    # A third of what a `swarm status` would take altogether: for those who come this way.
    from aiohttp import ClientError, ClientSession, ClientWSTimeout, TCPConnector

    session = ClientSession(connector=TCPConnector(socket_factory=_tuned, force_close=True))
    try:
        scheme = "https" if address[1] in HTTPS_PORTS else "http"
        async with asyncio.timeout(timeout):
            ws = await session.ws_connect(
                f"{scheme}://{format_address(address)}{path}",
                compress=0,
                max_msg_size=MAX_FRAME_BYTES,
                timeout=ClientWSTimeout(ws_close=2.0),
                ssl=False,  # no certificate is asked for: the channel inside proves who is at its end
                proxy=proxy,
            )
    except (ClientError, OSError, TimeoutError, ValueError) as exc:
        await session.close()
        let_go(exc)
        raise PeerError(str(exc) or f"no answer within {timeout:g} s") from exc
    except BaseException:
        await session.close()
        raise
    near, far = socket_pair()
    tasks.spawn(_move(session, ws, far))
    return near


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected local sockets that hold little."""
    near, far = socket.socketpair()
    for end in (near, far):
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE_BYTES)
    return near, far


def _tuned(info: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(info[0], info[1], info[2])
    tune(sock)
    return sock


async def _move(session: ClientSession, ws: Socket, sock: socket.socket) -> None:
    try:
        await carry(ws, sock)
    finally:
        await session.close()


async def carry(ws: Socket, sock: socket.socket) -> None:
    """Move bytes between the two until either ends, then close both."""
    tasks = [asyncio.create_task(_outwards(ws, sock)), asyncio.create_task(_inwards(ws, sock))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:  # cancelled once more, as when the process ends
            sock.close()
            await ws.close()


async def _outwards(ws: Socket, sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(sock, MAX_FRAME_BYTES // 2):
        await ws.send_bytes(data)


async def _inwards(ws: Socket, sock: socket.socket) -> None:
    from aiohttp import WSMsgType

    loop = asyncio.get_running_loop()
    async for message in ws:
        if message.type is not WSMsgType.BINARY:
            return
        await loop.sock_sendall(sock, message.data)
