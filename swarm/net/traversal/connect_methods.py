"""The single ways to open a connection to a node; `traversal.reach` races them, `traversal.inbound` answers them."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Sequence

from swarm.base.address import Address, format_address
from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId
from swarm.net.channel.limits import ReachLimits
from swarm.net.dial import connect_one
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.net.traversal.messages import RelayRoom
from swarm.net.tunnel import RELAY_PATH, open_tunnel

_NO_LINGER = struct.pack("ii", 1, 0)
"""A punched connection ends with a reset: TIME_WAIT would keep the same two ports from being opened again."""


async def open_at_once(
    board: Switchboard,
    limits: ReachLimits,
    via: Peer,
    target: Address,
    *,
    initiator: bool,
    node: NodeId,
    claim: Callable[[], None] = lambda: None,
) -> None:
    """TCP simultaneous open with `target`, from the port that is in use towards `via`. Raises PeerError."""
    source = via.local_address
    if via.tunnelled or not source[1]:
        raise PeerError("the connection to the rendezvous has no port to open")
    try:
        async with asyncio.timeout(limits.punch):
            while True:
                try:
                    sock = await connect_one(target, source)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                    break
                except OSError as exc:
                    if exc.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES, errno.EINVAL):
                        raise PeerError(f"cannot share local port {source[1]}: {exc.strerror}") from exc
                await asyncio.sleep(limits.punch_retry)
    except TimeoutError as exc:
        raise PeerError(f"no simultaneous open with {format_address(target)}") from exc
    await board.adopt(sock, initiator=initiator, expect=node, edge="punched", claim=claim)


async def enter_room(board: Switchboard, via: Peer, room: RelayRoom) -> socket.socket:
    """Join the room that `via` made; only that node's own host is dialled. Raises PeerError."""
    host = via.address[0]
    listed = [a for a in room.addresses if a[0] == host]
    addresses = [via.address, *listed] if via.dialled else listed
    return await join_room(board, list(dict.fromkeys(addresses)), room.token, timeout=3.0)


async def join_room(board: Switchboard, addresses: Sequence[Address], token: str, timeout: float) -> socket.socket:
    """A connected socket that leads through the relay's room. `addresses`: where the relay may listen, tried in turn.

    Raises PeerError.
    """
    failure = "it gave no address"
    for address in addresses:
        try:
            return await open_tunnel(address, RELAY_PATH + token, board, timeout, board.proxy)
        except PeerError as exc:
            failure = str(exc)
    raise PeerError(f"the relay was not reached: {failure}")
