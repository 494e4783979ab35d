"""Reaching a node where nothing but HTTP passes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from swarm.base.address import Address
from swarm.base.errors import PeerError
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.message import Message
from swarm.net.dialer import DOOR
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.net.traversal.reach import Reach
from swarm.net.traversal.webdoor import door_routes
from swarm.net.tunnel import MAX_FRAME_BYTES
from tests.httponly import http_only
from tests.swarm.net.traversal.test_relay import certificate, http_proxy


@asynccontextmanager
async def node(limits: ChannelLimits | None = None) -> AsyncIterator[tuple[Switchboard, Address]]:
    """A node with a door for HTTP."""

    async def echo(peer: Peer, message: Message) -> Message:
        return message

    async with Switchboard(Identity.generate(), {"echo": echo}, limits) as board:
        app = web.Application()
        app.add_routes(door_routes(board))
        runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.5)
        await runner.setup()
        board.http = runner.server  # type: ignore[assignment]
        try:
            yield board, await board.listen("127.0.0.1", 0)
        finally:
            await runner.cleanup()


async def exchanged(peer: Peer) -> None:
    answer = await peer.call(Message("echo", {"n": 1}, bytes(300_000)), timeout=5)
    assert answer.header == {"n": 1} and len(answer.body) == 300_000


async def test_tcp_is_taken_where_it_leads_there() -> None:
    async with node() as (board, address), Switchboard(Identity.generate()) as asker:
        peer = await asker.peer(board.id, [address])
        await exchanged(peer)
        assert peer.edge == "direct"


@pytest.mark.parametrize("reach", [False, True])
async def test_a_firewall_that_lets_http_alone_through_is_passed(reach: bool) -> None:
    async with node() as (board, address), Switchboard(Identity.generate()) as asker, http_only(address) as wall:
        if reach:
            Reach(asker)
        peer = await asker.peer(board.id, [wall.address])
        await exchanged(peer)
        assert peer.edge == "http" and peer.address == wall.address and peer.dialled
        other = board.get(asker.id)
        assert other is not None and other.edge == "http" and other.address[0] == "127.0.0.1" and other.tunnelled
        assert wall.refused and wall.passed == [f"GET {DOOR} HTTP/1.1"]


@pytest.mark.parametrize("reach", [False, True])
async def test_a_proxy_is_gone_through(reach: bool) -> None:
    async with node() as (board, address), http_only(None) as wall, http_only(address) as gate:
        proxy = "http://{}:{}".format(*wall.address)
        async with Switchboard(Identity.generate(), proxy=proxy) as asker:
            if reach:
                Reach(asker)
            peer = await asker.peer(board.id, [gate.address])
            await exchanged(peer)
            where = "{}:{}".format(*gate.address)
            assert peer.edge == "http" and wall.passed == [f"GET http://{where}{DOOR} HTTP/1.1"]


async def test_https_goes_through_a_proxy_with_connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a node behind a proxy of its own that ends TLS, as on port 443."""
    context: ssl.SSLContext = certificate(tmp_path)
    async with node() as (board, address), http_proxy(address, context) as (gate, asked), http_only(None) as wall:
        monkeypatch.setattr("swarm.net.tunnel.HTTPS_PORTS", (gate[1],))
        async with Switchboard(Identity.generate(), proxy="http://{}:{}".format(*wall.address)) as asker:
            peer = await asker.peer(board.id, [gate])
            await exchanged(peer)
            assert asked == [DOOR] and wall.passed == ["CONNECT {}:{} HTTP/1.1".format(*gate)]


async def test_who_answers_by_http_must_be_who_was_wanted() -> None:
    async with node() as (_, address), Switchboard(Identity.generate()) as asker, http_only(address) as wall:
        with pytest.raises(PeerError, match="by HTTP: expected node"):
            await asker.peer(Identity.generate().id, [wall.address])


async def test_strangers_at_the_door_for_http_are_bounded_like_others() -> None:
    """In number and time, whatever they send, and web pages are no guests."""
    limits = ChannelLimits(handshake_seconds=0.3, pending=4, pending_per_host=3)
    async with node(limits) as (board, address), aiohttp.ClientSession() as http:
        url = f"http://{address[0]}:{address[1]}{DOOR}"
        silent = [await http.ws_connect(url) for _ in range(8)]
        assert board._door.pending <= 3
        for ws in silent:
            assert (await ws.receive(timeout=5)).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
        loud = await http.ws_connect(url)
        await loud.send_bytes(b"\x00" * (MAX_FRAME_BYTES + 1))
        assert (await loud.receive(timeout=5)).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
        nested = await http.ws_connect(url)  # HTTP inside of it leads nowhere
        await nested.send_bytes(f"GET {DOOR} HTTP/1.1\r\n\r\n".encode())
        assert (await nested.receive(timeout=5)).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await http.ws_connect(url, origin="http://evil.example")
        assert not board.peers()


async def test_a_node_that_can_only_speak_http_comes_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can dial it; a peer that both have calls it, and it dials back by HTTP."""
    async with node() as (home, at_home), node() as (asker, at_asker), Switchboard(Identity.generate()) as shy:
        Reach(home)
        Reach(shy)
        async with http_only(at_home) as home_gate, http_only(at_asker) as asker_gate:
            reach = Reach(asker)
            gate = asker_gate.address
            monkeypatch.setattr(reach, "_own_addresses", lambda: (gate,))  # its port is seen through the firewall alone
            await asker.peer(home.id, [at_home])
            await shy.peer(home.id, [home_gate.address])
            peer = await asker.peer(shy.id, [])
            assert peer.edge == "http" and not peer.dialled
            assert asker_gate.passed == [f"GET {DOOR} HTTP/1.1"]


async def test_after_http_was_needed_it_is_begun_soon() -> None:
    async with node() as (one, at_one), node() as (two, at_two), Switchboard(Identity.generate()) as asker:
        async with http_only(at_one) as first, http_only(at_two) as second:
            await asker.peer(one.id, [first.address])
            await asker.peer(two.id, [second.address])
            assert asker._contact._by_http
        assert (await asyncio.gather(asker.peer(one.id, []), asker.peer(two.id, [])))[0].edge == "http"
