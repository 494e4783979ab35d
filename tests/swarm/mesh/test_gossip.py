"""Real switchboards on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from swarm.errors import PeerError
from swarm.identity import Identity
from swarm.mesh.gossip import Gossip
from swarm.mesh.hello import Hello, enter, invited
from swarm.mesh.invite import make_invite, parse_invite_untrusted
from swarm.mesh.membership import InviteError, Membership
from swarm.mesh.record import NOWHERE, NodeRecord
from swarm.mesh.saved import Saved
from swarm.net.address import Address
from swarm.net.switchboard import Switchboard

MODEL = bytes(range(32))
REF = "tiny"


@dataclass
class Node:
    board: Switchboard
    gossip: Gossip
    identity: Identity
    address: Address
    clashes: list[str] = field(default_factory=list)

    def up(self) -> set[bytes]:
        return {v.record.node for v in self.gossip.members() if v.standing == "up"}


class Field:
    """Starts nodes on loopback and closes them all."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.stack = stack
        self.nodes: list[Node] = []

    async def board(self, identity: Identity) -> tuple[Switchboard, Address]:
        board = await self.stack.enter_async_context(Switchboard(identity))
        return board, await board.listen("127.0.0.1", 0)

    async def first(self, open_swarm: bool = False) -> Node:
        identity = Identity.generate()
        board, address = await self.board(identity)
        saved = Saved(Membership.found(identity.id, open_swarm), MODEL, REF)
        return await self.start(board, address, identity, saved)

    async def join(self, invite: str, role: str = "node", identity: Identity | None = None) -> Node:
        identity = identity or Identity.generate()
        board, address = await self.board(identity)
        parsed = parse_invite_untrusted(invite)
        welcome, _ = await enter(board, invited(parsed, role), parsed.members)
        saved = Saved(welcome.membership, welcome.model, welcome.ref, parsed.members)
        return await self.start(board, address, identity, saved, guest=role == "guest")

    async def start(
        self, board: Switchboard, address: Address, identity: Identity, saved: Saved, guest: bool = False
    ) -> Node:
        clashes: list[str] = []
        about = (
            None
            if guest
            else NodeRecord(
                identity.id, b"", 0, 0, 0, state="serving", addresses=(address,), n_layers=30, layers=NOWHERE
            )
        )
        gossip = Gossip(board, identity.sign, saved, about, clashed=clashes.append)
        node = Node(board, await self.stack.enter_async_context(gossip), identity, address, clashes)
        self.nodes.append(node)
        return node


def invite_of(node: Node, once: bool = False, expires_s: int = 600) -> str:
    gossip = node.gossip
    return make_invite(
        gossip.membership, MODEL, REF, [(node.board.id, [node.address])], gossip._wall(), expires_s, once
    ).text()


async def until(check: Callable[[], bool], *nodes: Node, timeout: float = 20.0) -> None:
    """Wait for changes at `nodes` until `check` holds."""
    async with asyncio.timeout(timeout):
        while not check():
            waits = [asyncio.ensure_future(node.gossip.wait_change()) for node in nodes]
            done, pending = await asyncio.wait(waits, timeout=0.25, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()


def kill(node: Node) -> None:
    """End a node without a goodbye, as kill -9 does."""
    node.gossip._leaving = True
    for task in list(node.gossip._tasks):
        task.cancel()
    for sock in node.board._listeners:
        sock.close()
    for peer in node.board.peers():
        peer.drop("killed")


@pytest.fixture
async def field_() -> AsyncIterator[Field]:
    async with AsyncExitStack() as stack:
        yield Field(stack)


async def test_joiners_learn_of_each_other_and_of_changes(field_: Field) -> None:
    a = await field_.first()
    b = await field_.join(invite_of(a))
    c = await field_.join(invite_of(a))
    everybody = {a.board.id, b.board.id, c.board.id}
    await until(lambda: all(n.up() == everybody for n in (a, b, c)), a, b, c)
    b.gossip.publish(layers=(10, 20), device="test device")
    await until(lambda: all(n.gossip.member(b.board.id).record.layers == (10, 20) for n in (a, c)), a, c)


async def test_a_node_that_leaves_is_gone_at_once_and_its_swarm_stays(field_: Field) -> None:
    a = await field_.first()
    b = await field_.join(invite_of(a))
    c = await field_.join(invite_of(a))
    await until(lambda: all(len(n.up()) == 3 for n in (a, b, c)), a, b, c)
    await a.gossip.leave()
    await a.board.aclose()
    await until(lambda: all(n.gossip.member(a.board.id).standing == "left" for n in (b, c)), b, c)
    d = await field_.join(invite_of(c))
    await until(lambda: d.up() == {b.board.id, c.board.id, d.board.id} == b.up(), b, c, d)


async def test_a_node_that_dies_is_found_down_by_the_others(field_: Field) -> None:
    a = await field_.first()
    b = await field_.join(invite_of(a))
    c = await field_.join(invite_of(a))
    await until(lambda: all(len(n.up()) == 3 for n in (a, b, c)), a, b, c)
    kill(c)
    await until(lambda: all(n.gossip.member(c.board.id).standing == "down" for n in (a, b)), a, b)
