"""Tries to wear a node out by coming and going: memory and descriptors of a real process stay where they were."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from swarm.base.address import parse_address_untrusted
from swarm.base.nodeid import parse_id_untrusted
from swarm.mesh.hello import Hello, knock
from swarm.mesh.invite import parse_invite_untrusted
from swarm.net.identity import Identity
from swarm.net.switchboard import Switchboard
from tests.attacks.stranger import descriptors, resident
from tests.ring.nest import Node, nest

AT_ONCE = 8
LEAK_BYTES = 16 * 1024
"""Per peer that came and went. What refers to itself waits for Python's collector, a few kilobytes each; the buffers of
a connection alone are 160 KiB."""


@pytest.fixture
async def node(model: Path, tmp_path: Path) -> AsyncIterator[Node]:
    async with nest(model, tmp_path) as nodes:
        yield await nodes.add((0, 2))


async def visit(node: Node) -> None:
    """A guest with a key of its own enters by the node's invite and leaves."""
    invite = parse_invite_untrusted(node.ready["invite"])
    where = parse_address_untrusted(node.ready["listen"])
    async with Switchboard(Identity.generate()) as board:
        hello = Hello(invite.swarm, b"", "guest", None, invite.token)
        await knock(board, hello, parse_id_untrusted(node.ready["node"]), [where])


async def visits(node: Node, count: int) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with room:
            await visit(node)

    await asyncio.gather(*(one() for _ in range(count)))


async def churned(node: Node, count: int) -> None:
    before = descriptors(node.pid)
    await visits(node, count)  # what is taken once: caches, arenas, the interpreter's pools
    settled = resident(node.pid)
    await visits(node, count)
    grown = resident(node.pid) - settled
    print(f"{count} peers more: {grown / 1e6:.2f} MB, {grown / count:.0f} bytes a peer")
    assert grown < max(2_000_000, count * LEAK_BYTES)
    until = time.monotonic() + 20
    while descriptors(node.pid) > before + 2:
        assert time.monotonic() < until, "the node holds connections of peers that left"
        await asyncio.sleep(0.1)


async def test_peers_that_come_and_go_leave_nothing_behind(node: Node) -> None:
    await churned(node, 60)


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_a_thousand_peers_that_come_and_go_leave_nothing_behind(node: Node) -> None:
    await churned(node, 1000)
