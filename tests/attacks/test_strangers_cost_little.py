"""Tries to exhaust a node's memory without an invite: a crowd of strangers, each doing its worst, at a real process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

import swarm.serve
from swarm.base.address import Address, parse_address_untrusted
from swarm.net.channel.message import Message
from tests.attacks.stranger import Stranger, descriptors, resident
from tests.ring.nest import Node, nest

PER_STRANGER = 1 << 20
"""What each tries to leave with the node."""
ALLOWED = 50_000_000
SECONDS = 20.0
STATIC = Path(swarm.serve.__file__).parent / "static"
LOGGED = 1_000_000
"""Bytes of the node's log after all of it."""


@pytest.fixture
async def node(model: Path, tmp_path: Path) -> AsyncIterator[Node]:
    async with nest(model, tmp_path) as nodes:
        yield await nodes.add((0, 2), "--relay")


async def many_flows(stranger: Stranger) -> None:
    """Messages that begin on every lane and never end."""
    await stranger.authenticate()
    await stranger.fill_lanes(PER_STRANGER)


async def slow_reader(stranger: Stranger) -> None:
    """Questions without end, and no answer is read."""
    await stranger.authenticate()
    for number in range(PER_STRANGER // 512):
        kind = ("mesh.hello", "receipt.audit", "weights.manifest")[number % 3]
        await stranger.call(Message(kind, {"swarm": bytes(10), "filling": "x" * 400}), number + 1)


async def half_open(stranger: Stranger) -> None:
    """All of the handshake but its last byte."""
    shake = await stranger.begin()
    await stranger.send(shake.write()[:-1])


async def quiet(stranger: Stranger) -> None:
    """Authenticated, and then nothing."""
    await stranger.authenticate()


async def long_head(stranger: Stranger) -> None:
    """A request for a relay's room whose head does not end."""
    await stranger.raw(b"GET /swarm/relay/none HTTP/1.1\r\nX: " + bytes(15_000))


async def long_body(stranger: Stranger) -> None:
    """A request whose body nobody asked for."""
    await stranger.raw(b"GET /swarm/relay/none HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
    for _ in range(PER_STRANGER >> 14):
        await stranger.raw(bytes(1 << 14))


async def rubbish_behind_a_stream(stranger: Stranger) -> None:
    """A request that is answered for ever, and behind it what is no HTTP."""
    await stranger.raw(b"GET /api/events HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nX: ")
    for _ in range(PER_STRANGER >> 14):
        await stranger.raw(bytes(1 << 14))


async def unread_file(stranger: Stranger) -> None:
    """The largest file of the page, and it is not read."""
    stranger.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    largest = max((path for path in STATIC.rglob("*.js")), key=lambda path: path.stat().st_size)
    request = f"GET /static/{largest.relative_to(STATIC)} HTTP/1.1\r\nHost: x\r\n\r\n"
    await stranger.raw(request.encode() * 20)


async def slow_head(stranger: Stranger) -> None:
    """The head of a request, a byte at a time."""
    for letter in b"GET /swarm/door HTTP/1.1\r\nHost: nobody\r\nX: ":
        await stranger.raw(bytes([letter]))
        await asyncio.sleep(0.02)


async def parts_without_end(stranger: Stranger) -> None:
    """One WebSocket message of ever more parts, none the last."""
    await stranger.fragment(0x02, b"\0" * 4096)
    for _ in range(PER_STRANGER >> 12):
        await stranger.fragment(0x00, b"\0" * 4096)


async def pings(stranger: Stranger) -> None:
    """WebSocket pings, each of which wants a pong that nobody reads."""
    for _ in range(PER_STRANGER >> 10):
        await stranger.fragment(0x89, b"x" * 125)


Attack = Callable[[Stranger], Awaitable[None]]
ATTACKS: list[tuple[str, Attack, bool]] = [
    *(
        (attack.__name__, attack, False)
        for attack in (
            many_flows,
            slow_reader,
            half_open,
            quiet,
            long_head,
            long_body,
            slow_head,
            rubbish_behind_a_stream,
            unread_file,
        )
    ),
    *(
        (f"{attack.__name__}_by_web", attack, True)
        for attack in (many_flows, slow_reader, half_open, quiet, parts_without_end, pings)
    ),
]


async def crowd(count: int, attack: Attack, web: bool, address: Address, pid: int) -> int:
    """Let `count` strangers attack at once and hold on; the most memory that the process took meanwhile, in bytes."""
    before = most = resident(pid)
    strangers: list[Stranger] = []

    async def one(number: int) -> None:
        stranger = Stranger(number, web)
        strangers.append(stranger)
        with contextlib.suppress(OSError, ConnectionError):
            async with asyncio.timeout(SECONDS):
                await stranger.connect(address)
                await attack(stranger)

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, resident(pid))
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SECONDS):
                await asyncio.gather(*(one(number) for number in range(count)), return_exceptions=True)
        await asyncio.sleep(0.5)
    finally:
        watching.cancel()
        for stranger in strangers:
            stranger.close()
    return max(most, resident(pid)) - before


async def settle(pid: int, most: int) -> None:
    """Wait until the process has no more than `most` descriptors: it has let go of everybody."""
    until = time.monotonic() + SECONDS
    while descriptors(pid) > most:
        assert time.monotonic() < until, "the node holds connections of strangers that left"
        await asyncio.sleep(0.1)


async def attacked(node: Node, count: int, name: str, attack: Attack, web: bool) -> None:
    open_before = descriptors(node.pid)
    cost = await crowd(count, attack, web, parse_address_untrusted(node.ready["listen"]), node.pid)
    print(f"{name}: {count} strangers cost {cost / 1e6:.1f} MB")
    assert cost < ALLOWED, name
    assert (node.nest.state / node.name / "node.log").stat().st_size < LOGGED, name
    await settle(node.pid, open_before + 4)


async def test_a_crowd_of_strangers_costs_little(node: Node) -> None:
    for name, attack, web in ATTACKS:
        await attacked(node, 60, name, attack, web)


@pytest.mark.soak
@pytest.mark.parametrize(("name", "attack", "web"), ATTACKS, ids=[name for name, _, _ in ATTACKS])
async def test_a_thousand_strangers_cost_less_than_50_mb(node: Node, name: str, attack: Attack, web: bool) -> None:
    await attacked(node, 1000, name, attack, web)
