"""A hello whose connection breaks: asked again, and another process with the same key named."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from swarm.base.errors import PeerError
from swarm.mesh.hello import Hello, answer_hello, enter, parse_hello_untrusted
from swarm.mesh.membership import Ledger, Membership
from swarm.mesh.messages import HELLO
from swarm.net.channel.message import Message
from swarm.net.identity import Identity
from swarm.net.peer import Handler, Peer
from swarm.net.switchboard import PeerWatcher, Switchboard
from tests.swarm.mesh.make import MODEL

MEMBER = Identity.generate()
MEMBERSHIP = Membership.found(MEMBER, open_swarm=True)


def member(broken: int) -> tuple[Handler, list[Peer]]:
    """A handler of hellos that drops the connection under the first `broken`, and whoever asked it."""
    asked: list[Peer] = []

    async def hello(peer: Peer, message: Message) -> Message:
        asked.append(peer)
        if len(asked) <= broken:
            peer.drop("away")
            await asyncio.sleep(1.0)
        said = parse_hello_untrusted(message.header)
        return answer_hello(said, peer.id, MEMBER.id, MEMBERSHIP, Ledger(), MODEL, "m", 1.0)[0]

    return hello, asked


async def test_a_connection_that_breaks_under_the_hello_is_made_again() -> None:
    hello, asked = member(broken=2)
    async with Switchboard(MEMBER, {HELLO: hello}) as board, Switchboard(Identity.generate()) as own:
        address = await board.listen("127.0.0.1", 0)
        welcome, by = await enter(own, Hello(MEMBERSHIP.swarm, MODEL, "guest"), [(MEMBER.id, [address])])
        assert by == MEMBER.id and welcome.model == MODEL and len(asked) == 3


async def test_a_member_that_says_why_it_leaves_is_not_asked_again() -> None:
    asked: list[Peer] = []

    async def hello(peer: Peer, message: Message) -> Message:
        asked.append(peer)
        await peer.close("busy: no room")
        return Message(HELLO)

    async with Switchboard(MEMBER, {HELLO: hello}) as board, Switchboard(Identity.generate()) as own:
        address = await board.listen("127.0.0.1", 0)
        with pytest.raises(PeerError, match="no member of the swarm could be reached: .*busy: no room"):
            await enter(own, Hello(MEMBERSHIP.swarm, MODEL, "guest"), [(MEMBER.id, [address])])
        assert len(asked) == 1


class Redials(PeerWatcher):
    """A node of the same key that comes back whenever its connection goes."""

    def __init__(self, board: Switchboard, address: tuple[str, int]) -> None:
        self.board, self.address = board, address

    def peer_opened(self, peer: Peer) -> None: ...

    def peer_closed(self, peer: Peer) -> None:
        self.board.spawn(self.dial())

    async def dial(self) -> None:
        with contextlib.suppress(PeerError):
            await self.board.peer(MEMBER.id, [self.address])


async def test_another_process_with_the_same_key_is_named_where_it_wins_every_time() -> None:
    key = Identity.generate()

    async def hello(peer: Peer, message: Message) -> Message:
        await peer.wait_closed()  # slow enough that the other one always comes first
        return Message(HELLO)

    async with Switchboard(MEMBER, {HELLO: hello}) as board, Switchboard(key) as first, Switchboard(key) as twin:
        address = await board.listen("127.0.0.1", 0)
        redials = Redials(first, address)
        first.watch(redials)
        await redials.dial()
        with pytest.raises(PeerError, match="two nodes use the key of .* give one of them another --state"):
            await enter(twin, Hello(MEMBERSHIP.swarm, MODEL, "node"), [(MEMBER.id, [address])])
