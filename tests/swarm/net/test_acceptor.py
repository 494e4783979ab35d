"""What strangers meet at a node's port: bounds, deadlines, HTTP beside the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import tracemalloc

import pytest
from aiohttp import ClientSession, web

from swarm.base.errors import UsageError
from swarm.net.channel.handshake import MAGIC, MESSAGE_BYTES, PREAMBLE, VERSION, ChannelKeys, Handshake
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.message import Message
from swarm.net.channel.sockets import read_exactly
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard


async def _echo(peer: Peer, message: Message) -> Message:
    return message


async def test_a_port_in_use_is_refused_clearly() -> None:
    async with Switchboard(Identity.generate()) as left, Switchboard(Identity.generate()) as right:
        host, port = await left.listen("127.0.0.1", 0)
        with pytest.raises(UsageError, match=f"cannot listen on {host}:{port}: .*in use.*--listen"):
            await right.listen(host, port)
        with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.1:0"):
            await right.listen("192.0.2.1", 0)


async def closed_by_other_side(sock: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while await asyncio.get_running_loop().sock_recv(sock, 4096):
            pass
    sock.close()


async def test_500_half_open_connections_are_closed_and_honest_nodes_get_through() -> None:
    limits = ChannelLimits(handshake_seconds=1.5, pending_per_host=300)
    a, b = Identity.generate(), Identity.generate()
    loop = asyncio.get_running_loop()
    async with Switchboard(a, {"echo": _echo}, limits) as left, Switchboard(b) as right:
        address = await left.listen("127.0.0.1", 0)
        crowd = []
        for number in range(500):
            sock = socket.socket()
            sock.setblocking(False)
            crowd.append(sock)
            await loop.sock_connect(sock, address)
            await loop.sock_sendall(sock, PREAMBLE.pack(MAGIC, VERSION)[: number % 9])
        peer = await right.peer(a.id, [address])
        await peer.call(Message("echo"), timeout=5)
        assert left._door.pending <= limits.pending_per_host
        async with asyncio.timeout(20):
            await asyncio.gather(*map(closed_by_other_side, crowd))
        assert not left._door.pending and not left._door._pending_hosts
        assert peer.closed_reason is None


async def test_one_port_serves_http_too() -> None:
    async def hello(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text=f"{request.method} {request.path} {request.headers.get('X')}")

    server = web.Server(hello)
    a, b = Identity.generate(), Identity.generate()
    limits = ChannelLimits(handshake_seconds=0.3)
    async with Switchboard(a, {"echo": _echo}, limits) as left, Switchboard(b) as right:
        left.http = server  # type: ignore[assignment]
        address = await left.listen("127.0.0.1", 0)
        peer = await right.peer(a.id, [address])
        url = f"http://{address[0]}:{address[1]}"
        async with ClientSession() as session:
            for number in range(3):
                answer = await session.get(f"{url}/x{number}", headers={"X": "y" * 9 * number})
                assert await answer.text() == f"GET /x{number} {'y' * 9 * number}"
                assert answer.headers["Connection"] == "close"  # what follows a request is not looked at
        loop = asyncio.get_running_loop()
        whole = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
        rest = whole * 2, whole + bytes(40_000), b"GET /x HTTP/1.0\r\n\r\n"
        for sent in (b"GET / HTTP/1.1\r\n", b"GET /" + bytes(40_000), b"HELO x", *rest):
            sock = socket.socket()
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            await loop.sock_sendall(sock, sent)
            async with asyncio.timeout(20):
                await closed_by_other_side(sock)
        assert (await peer.call(Message("echo", {"n": 1}), timeout=5)).header == {"n": 1}
    await server.shutdown()


async def test_a_stranger_costs_less_than_64_kb() -> None:
    count = 100
    async with Switchboard(Identity.generate(), limits=ChannelLimits(handshake_seconds=30.0)) as board:
        address = await board.listen("127.0.0.1", 0)
        loop = asyncio.get_running_loop()
        stranger = Handshake(ChannelKeys.make(Identity.generate(), 1 << 20), initiator=True)
        hello = PREAMBLE.pack(MAGIC, VERSION) + stranger.write()
        answer = len(PREAMBLE.pack(MAGIC, VERSION)) + MESSAGE_BYTES[1]
        crowd = [socket.socket() for _ in range(count)]
        for sock in crowd:
            sock.setblocking(False)
        gc.collect()
        tracemalloc.start()
        try:
            for sock in crowd:  # as far as anyone gets without keys: waiting for the last message, part of it sent
                await loop.sock_connect(sock, address)
                await loop.sock_sendall(sock, hello + bytes(MESSAGE_BYTES[2] - 1))
                await read_exactly(sock, answer)
            gc.collect()
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert board._door.pending == count
        assert held / count < 64 * 1024 and peak / count < 64 * 1024
        for sock in crowd:
            sock.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_all_addresses_mean_both_families_at_one_port(host: str) -> None:
    async with Switchboard(Identity.generate()) as here, Switchboard(Identity.generate()) as there:
        bound, port = await here.listen("::", 0)
        assert bound == "::" and {at for at, _ in here.listening} == {"0.0.0.0", "::"}
        peer = await there.peer(here.id, [(host, port)])
        assert peer.address[0] == host  # of its own family, as hole punching needs it
        with pytest.raises(UsageError, match="in use"):
            await there.listen("::", port)
        assert not there.listening  # nothing half


async def test_a_machine_without_ipv6_listens_on_the_other_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.net.channel.sockets.has_ipv6", lambda: False)
    async with Switchboard(Identity.generate()) as board:
        assert (await board.listen("::", 0))[0] == "0.0.0.0"
