"""A WebSocket to a relay, seen from the channel as an ordinary connected socket.

The channel gets one end of a local socket pair; two loops move bytes between the other end and the WebSocket. It costs
a copy and keeps the channel free of a second kind of transport.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from aiohttp import ClientError, ClientSession, ClientWebSocketResponse, ClientWSTimeout, TCPConnector, WSMsgType

from swarm.errors import PeerError
from swarm.net.address import Address, format_address
from swarm.net.relay import MAX_FRAME_BYTES, PATH
from swarm.net.sockets import tune

HTTPS_PORTS = (443,)
"""Where a relay is spoken to in HTTPS: a proxy that ends TLS is in front of it, for networks that let out no HTTP."""
_QUEUE_BYTES = 64 * 1024
"""Kernel buffer of the socket pair: small, so that urgent records do not queue in it."""


async def join_room(
    addresses: Sequence[Address], token: str, spawn: Callable[[Coroutine[Any, Any, None]], object], timeout: float
) -> socket.socket:
    """A connected socket that leads through the relay's room. Raises PeerError.

    `addresses`: where the relay may listen, tried in turn. `spawn` owns the loops that move the bytes; they end with
    the socket.
    """
    failure = "it gave no address"
    for address in addresses:
        session = ClientSession(connector=TCPConnector(socket_factory=_tuned, force_close=True))
        try:
            scheme = "https" if address[1] in HTTPS_PORTS else "http"
            url = f"{scheme}://{format_address(address)}{PATH}{token}"
            async with asyncio.timeout(timeout):
                web = await session.ws_connect(
                    url,
                    compress=0,
                    max_msg_size=MAX_FRAME_BYTES,
                    timeout=ClientWSTimeout(ws_close=2.0),
                    ssl=False,  # no certificate is asked for: the channel inside proves who is at its end
                )
        except (ClientError, OSError, TimeoutError, ValueError) as exc:
            failure = str(exc) or type(exc).__name__
            await session.close()
            continue
        except BaseException:
            await session.close()
            raise
        near, far = socket.socketpair()
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE_BYTES)
        spawn(_move(session, web, far))
        return near
    raise PeerError(f"the relay was not reached: {failure}")


def _tuned(info: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(info[0], info[1], info[2])
    tune(sock)
    return sock


async def _move(session: ClientSession, web: ClientWebSocketResponse[bool], sock: socket.socket) -> None:
    tasks = [asyncio.create_task(_outwards(web, sock)), asyncio.create_task(_inwards(web, sock))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        sock.close()
        await web.close()
        await session.close()


async def _outwards(web: ClientWebSocketResponse[bool], sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(sock, MAX_FRAME_BYTES // 2):
        await web.send_bytes(data)


async def _inwards(web: ClientWebSocketResponse[bool], sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    async for message in web:
        if message.type is not WSMsgType.BINARY:
            return
        await loop.sock_sendall(sock, message.data)
