"""The relay: ciphertext between two nodes over HTTP, within bounds, for those who want it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType, WSServerHandshakeError, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.address import Address
from swarm.base.errors import BusyError, PeerError
from swarm.net.channel.message import Message
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.traversal.connect_methods import join_room
from swarm.net.traversal.messages import ASK, JOIN
from swarm.net.traversal.relay import Bucket, RelayLimits
from swarm.net.tunnel import RELAY_PATH
from tests.swarm.net.traversal.test_reach import Three, three


async def test_relay_carries_ciphertext_only(monkeypatch: pytest.MonkeyPatch) -> None:
    carried = bytearray()
    real = web.WebSocketResponse.send_bytes

    async def spy(self: web.WebSocketResponse, data: bytes, compress: int | None = None) -> None:
        carried.extend(data)
        await real(self, data, compress)

    monkeypatch.setattr(web.WebSocketResponse, "send_bytes", spy)
    async with three(relay=(True, True)) as nodes:
        peer = await nodes.reach()
        assert peer.edge == nodes.other_end().edge == "relay"
        secret = b"the quick brown fox jumps over the lazy dog"
        await peer.call(Message("echo", {"s": "attack at dawn"}, secret), timeout=5)
        assert secret not in carried and b"attack" not in carried and b"echo" not in carried
        assert nodes.asker.id not in carried and nodes.target.id not in carried
        assert nodes.relay.carried_bytes == len(carried) > 100_000 and nodes.relay.rooms == 1
        await peer.close("done")
        async with asyncio.timeout(5):
            while nodes.relay.rooms:  # noqa: ASYNC110 - the room has no event for tests
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("relay", [(False, True), (True, False)])
async def test_either_side_can_refuse_relays(relay: tuple[bool, bool]) -> None:
    async with three(relay=relay, relay_limits=RelayLimits(join_seconds=0.1)) as nodes:
        with pytest.raises(PeerError, match="was not reached"):
            await nodes.reach()
        assert nodes.relay.carried_bytes == 0


async def test_a_relay_bounds_its_rooms_and_each_token_opens_once() -> None:
    async with three(relay_limits=RelayLimits(rooms=2, rooms_per_user=1, join_seconds=0.5)) as nodes:
        home = nodes.asker.get(nodes.home.id)
        assert home is not None
        with pytest.raises(PeerError, match="is not connected"):
            await home.call(Message(ASK, {"node": Identity.generate().id}), 5)
        room = await home.call(Message(ASK, {"node": nodes.target.id}), 5)
        with pytest.raises(BusyError, match="1 rooms on this relay already"):
            await home.call(Message(ASK, {"node": nodes.target.id}), 5)
        url = f"http://{nodes.home_address[0]}:{nodes.home_address[1]}{RELAY_PATH}"
        async with ClientSession() as session:
            with pytest.raises(WSServerHandshakeError, match="404"):
                await session.ws_connect(url + "x" * 32)
            socket = await session.ws_connect(url + room.header["token"])
            with pytest.raises(WSServerHandshakeError, match="404"):
                await session.ws_connect(url + room.header["token"])
            assert (await socket.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)  # nobody joined
        async with asyncio.timeout(5):
            while nodes.relay.rooms:  # noqa: ASYNC110 - the room has no event for tests
                await asyncio.sleep(0.005)
        assert nodes.relay._users == {} and nodes.relay._tokens == {}


async def test_an_idle_room_is_closed() -> None:
    tokens: asyncio.Queue[str] = asyncio.Queue()

    async def on_join(peer: Peer, message: Message) -> None:
        tokens.put_nowait(message.header["token"])

    async with three(relay_limits=RelayLimits(idle_seconds=0.1)) as nodes:
        nodes.target._handlers[JOIN] = on_join
        home = nodes.asker.get(nodes.home.id)
        assert home is not None
        room = await home.call(Message(ASK, {"node": nodes.target.id}), 5)
        url = f"http://{nodes.home_address[0]}:{nodes.home_address[1]}{RELAY_PATH}"
        async with ClientSession() as session:
            left: ClientWebSocketResponse[Any] = await session.ws_connect(url + room.header["token"])
            right: ClientWebSocketResponse[Any] = await session.ws_connect(url + await tokens.get())
            await left.send_bytes(b"x" * 40_000)
            got = b""
            while len(got) < 40_000:
                got += (await right.receive()).data
            assert got == b"x" * 40_000
            async with asyncio.timeout(5):
                assert (await right.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED)


@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(0, 2)), max_size=50))
def test_a_bucket_never_lets_more_through_than_rate_and_burst(steps: list[tuple[int, float]]) -> None:
    bucket = Bucket(rate=1000.0, burst=3000.0)
    now = through = 0.0
    for count, pause in steps:
        now += pause + bucket.take(count, now + pause)  # the caller waits as told
        through += count
        assert through <= 3000.0 + 1000.0 * now + count * 1e-6 + 1e-3


async def room_of_two(nodes: Three) -> tuple[str, str]:
    """Tokens of a room: the asker's and the target's."""
    tokens: asyncio.Queue[str] = asyncio.Queue()

    async def on_join(peer: Peer, message: Message) -> None:
        tokens.put_nowait(message.header["token"])

    nodes.target._handlers[JOIN] = on_join
    home = nodes.asker.get(nodes.home.id)
    assert home is not None
    room = await home.call(Message(ASK, {"node": nodes.target.id}), 5)
    return room.header["token"], await tokens.get()


async def test_a_users_bandwidth_is_bounded_over_all_its_rooms_and_both_directions() -> None:
    limits = RelayLimits(rate_bytes=200_000.0, burst_bytes=50_000.0)
    async with three(relay_limits=limits) as nodes, ClientSession() as session:
        url = f"http://{nodes.home_address[0]}:{nodes.home_address[1]}{RELAY_PATH}"
        rooms = [await room_of_two(nodes) for _ in range(2)]
        sides: list[ClientWebSocketResponse[Any]] = [
            await session.ws_connect(url + token) for room in rooms for token in room
        ]
        begun = time.monotonic()

        async def take(side: ClientWebSocketResponse[Any], count: int) -> None:
            while count > 0:
                count -= len((await side.receive()).data)

        for side in sides:
            await side.send_bytes(bytes(32_000))
        await asyncio.gather(*(take(side, 32_000) for side in sides))
        assert time.monotonic() - begun >= (4 * 32_000 - 50_000) / 200_000 - 0.01  # never faster; how slow is open
        assert nodes.relay.carried_bytes == 4 * 32_000


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate that nobody signed but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "relay")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    (folder / "cert.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(secret)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


@asynccontextmanager
async def http_proxy(behind: Address, tls: ssl.SSLContext | None) -> AsyncIterator[tuple[Address, list[str]]]:
    """A reverse proxy that knows HTTP and its upgrade to a WebSocket alone; and what it was asked for."""
    asked: list[str] = []

    async def carry(source: Any, sink: Any) -> None:
        async for message in source:
            await sink.send_bytes(message.data)
        await sink.close()

    async def forward(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        near = web.WebSocketResponse()
        await near.prepare(request)
        async with ClientSession() as session:
            far = await session.ws_connect(f"http://{behind[0]}:{behind[1]}{request.path}")
            await asyncio.gather(carry(near, far), carry(far, near))
        return near

    app = web.Application()
    app.router.add_get("/{path:.*}", forward)
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        yield ("127.0.0.1", runner.addresses[0][1]), asked
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("tls", [False, True])
async def test_it_passes_a_proxy_that_speaks_http_alone(
    tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = certificate(tmp_path) if tls else None
    async with three() as nodes, http_proxy(nodes.home_address, context) as (proxy, asked):
        monkeypatch.setattr("swarm.net.tunnel.HTTPS_PORTS", (proxy[1],) if tls else (443,))
        tokens = await room_of_two(nodes)
        socks = [await join_room(nodes.asker, [proxy], token, 5) for token in tokens]
        mine = nodes.asker.adopt(socks[0], initiator=True, expect=nodes.target.id, edge="relay")
        theirs = nodes.target.adopt(socks[1], initiator=False, expect=nodes.asker.id, edge="relay")
        peer, other = await asyncio.gather(mine, theirs)
        answer = await peer.call(Message("echo", {"n": 1}, bytes(200_000)), timeout=5)
        assert answer.header == {"n": 1} and len(answer.body) == 200_000
        assert sorted(asked) == sorted(RELAY_PATH + token for token in tokens)
        for one in (peer, other):
            with contextlib.suppress(PeerError):
                await one.close("done")
