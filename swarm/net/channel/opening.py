"""From a connected socket to a channel: the handshake, within its deadline."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from swarm.base.address import Address
from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId
from swarm.net.channel.channel import Channel
from swarm.net.channel.handshake import MAGIC, PREAMBLE, VERSION, ChannelKeys, Handshake, check_preamble_untrusted
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.sockets import read_exactly, remote_address, write_all


async def open_channel(
    sock: socket.socket,
    keys: ChannelKeys,
    limits: ChannelLimits,
    *,
    initiator: bool,
    expect: NodeId | None = None,
    head: bytes = b"",
    claim: Callable[[], None] = lambda: None,
    address: Address | None = None,
) -> Channel:
    """Shake hands over a connected, non-blocking socket and return the channel; it owns the socket from then on.

    `head` holds the bytes that were read already (the responder's, at most the preamble). `claim` is called when the
    initiator is about to send its last message, after which the other side counts it as connected; of several ways to
    the same node it lets one through and raises PeerError for the others. `address` is told as the other end's,
    where the socket is that of a tunnel. Raises PeerError within `limits.handshake_seconds`, with the socket closed.
    """
    try:
        async with asyncio.timeout(limits.handshake_seconds):
            handshake = Handshake(keys, initiator, expect)
            await (_initiate(sock, handshake, claim) if initiator else _respond(sock, handshake, head))
        assert handshake.established is not None
        channel = Channel(handshake.established, limits, dialled=initiator, address=address or remote_address(sock))
        await asyncio.get_running_loop().create_connection(lambda: channel, sock=sock)
        channel.pause_reading()
    except TimeoutError as exc:
        sock.close()
        raise PeerError(f"the handshake was not finished within {limits.handshake_seconds:g} s") from exc
    except BaseException:
        sock.close()
        raise
    return channel


async def _initiate(sock: socket.socket, handshake: Handshake, claim: Callable[[], None]) -> None:
    await write_all(sock, PREAMBLE.pack(MAGIC, VERSION) + handshake.write())
    check_preamble_untrusted(await read_exactly(sock, PREAMBLE.size))
    handshake.read_untrusted(await read_exactly(sock, handshake.next_bytes))
    claim()
    await write_all(sock, handshake.write())


async def _respond(sock: socket.socket, handshake: Handshake, head: bytes) -> None:
    preamble = PREAMBLE.pack(MAGIC, VERSION)
    theirs = head + await read_exactly(sock, PREAMBLE.size - len(head))
    try:
        check_preamble_untrusted(theirs)
    except PeerError:
        if theirs.startswith(MAGIC):
            await write_all(sock, preamble)  # lets the other side say which version it met
        raise
    handshake.read_untrusted(await read_exactly(sock, handshake.next_bytes))
    await write_all(sock, preamble + handshake.write())
    handshake.read_untrusted(await read_exactly(sock, handshake.next_bytes))
