"""Real nodes of a swarm in one process: switchboards on loopback with gossip over them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from swarm.base.address import Address
from swarm.base.clock import SystemTime, TimeSource
from swarm.base.life import Life
from swarm.mesh.gossip import Gossip
from swarm.mesh.hello import enter, invited
from swarm.mesh.invite import make_invite, parse_invite_untrusted
from swarm.mesh.membership import Membership
from swarm.mesh.messages import HELLO
from swarm.mesh.pairing import PAIR
from swarm.mesh.record import NOWHERE, NodeRecord
from swarm.mesh.saved import Saved
from swarm.net.identity import Identity
from swarm.net.switchboard import Switchboard

MODEL = bytes(range(32))
REF = "tiny"


class Ended(Life):
    """A life that takes note of why it is over."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def end(self, why: str) -> None:
        self.reasons.append(why)


class Ahead(SystemTime):
    """A machine whose wall clock is set so many seconds wrong."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def wall(self) -> float:
        return super().wall() + self.seconds


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
        board = await self.stack.enter_async_context(Switchboard(identity, open_kinds=(HELLO, PAIR)))
        return board, await board.listen("127.0.0.1", 0)

    async def first(self, open_swarm: bool = False, time: TimeSource | None = None) -> Node:
        identity = Identity.generate()
        board, address = await self.board(identity)
        saved = Saved(Membership.found(identity, open_swarm), MODEL, REF)
        return await self.start(board, address, identity, saved, time=time)

    async def join(self, invite: str, role: str = "node", identity: Identity | None = None) -> Node:
        identity = identity or Identity.generate()
        board, address = await self.board(identity)
        parsed = parse_invite_untrusted(invite)
        welcome, _ = await enter(board, invited(parsed, role), parsed.members)
        saved = Saved(welcome.membership, welcome.model, welcome.ref, parsed.members)
        return await self.start(board, address, identity, saved, guest=role == "guest")

    async def start(
        self,
        board: Switchboard,
        address: Address,
        identity: Identity,
        saved: Saved,
        guest: bool = False,
        time: TimeSource | None = None,
    ) -> Node:
        about = NodeRecord(
            identity.id, b"", 0, 0, 0, state="serving", addresses=(address,), n_layers=30, layers=NOWHERE
        )
        life = Ended()
        gossip = Gossip(board, saved, None if guest else about, life=life, time=time)
        node = Node(board, await self.stack.enter_async_context(gossip), identity, address, life.reasons)
        self.nodes.append(node)
        return node


def invite_of(node: Node, once: bool = False, expires_s: int = 600, role: str = "node") -> str:
    gossip = node.gossip
    return make_invite(
        gossip.membership, MODEL, REF, [(node.board.id, [node.address])], gossip._time.wall(), expires_s, once, role
    ).text()


async def until(check: Callable[[], bool], *nodes: Node, timeout: float = 20.0) -> None:
    """Wait for changes at `nodes` until `check` holds."""
    async with asyncio.timeout(timeout):
        while not check():
            waits = [asyncio.ensure_future(node.gossip.wait_change()) for node in nodes]
            done, pending = await asyncio.wait(waits, timeout=0.25, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()


def kill_tasks(node: Node) -> None:
    """From now on the node does nothing by itself."""
    node.gossip._neighbours.leaving = True
    node.gossip._tasks.cancel()


def kill(node: Node) -> None:
    """End a node without a goodbye, as kill -9 does."""
    kill_tasks(node)
    node.board._door.close()
    for peer in node.board.peers():
        peer.drop("killed")
