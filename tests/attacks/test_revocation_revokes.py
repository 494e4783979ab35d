"""Tries to stay in, or to let others in, after an invite was revoked, and to be more than an invite said.

Two real node processes keep the door; the attackers are real connections with keys of their own and no manners. The
owner does what an owner can: `swarm invite` and `swarm revoke`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from swarm.base.address import Address, parse_address_untrusted
from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId, parse_id_untrusted
from swarm.mesh.admission import FOUNDER_PROOF, extend_proof
from swarm.mesh.hello import Hello, Welcome, hello_message, knock
from swarm.mesh.invite import Invite, parse_invite_untrusted
from swarm.mesh.membership import InviteError, InviteToken, Membership
from swarm.net.channel.message import Message
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from tests.ring.nest import Nest, nest

GOSSIP_SECONDS = 20.0
REFUSED = "revoked|no member any more|counts no more"


@dataclass
class Attacker:
    """A key with connections; it says what it likes."""

    identity: Identity
    board: Switchboard

    async def say(self, door: tuple[NodeId, Address], hello: Hello) -> Welcome:
        return await knock(self.board, hello, door[0], [door[1]])

    def by(self, invite: Invite, role: str, token: InviteToken | None, proof: bytes | None = None) -> Hello:
        return Hello(invite.swarm, b"", role, proof, token)


@dataclass
class Doors:
    nodes: Nest
    stack: AsyncExitStack

    def door(self, number: int) -> tuple[NodeId, Address]:
        ready = self.nodes.nodes[number].ready
        return parse_id_untrusted(ready["node"]), parse_address_untrusted(ready["listen"])

    async def attacker(self) -> Attacker:
        identity = Identity.generate()
        return Attacker(identity, await self.stack.enter_async_context(Switchboard(identity)))

    async def command(self, *words: str) -> str:
        """Run `swarm` as the owner of the first node."""
        state = self.nodes.state / "node-1"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "swarm", *words, "--state", str(state)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()

    async def invite(self, *words: str) -> Invite:
        return parse_invite_untrusted(json.loads(await self.command("invite", "--json", *words))["invite"])

    async def revoke(self, invite: Invite) -> None:
        await self.command("revoke", invite.text())

    async def refused(self, number: int, hello: Hello, reason: str = REFUSED, by: Attacker | None = None) -> None:
        """Within the time of gossip the node refuses this hello, and then keeps refusing it."""
        until = time.monotonic() + GOSSIP_SECONDS
        while True:
            someone = by or await self.attacker()
            try:
                await someone.say(self.door(number), hello)
            except InviteError as error:
                assert any(part in str(error) for part in reason.split("|")), error
                return
            except PeerError:
                pass  # thrown out in the middle of it
            assert time.monotonic() < until, f"node {number + 1} goes on opening"
            await asyncio.sleep(0.2)


@pytest.fixture
async def doors(model: Path, tmp_path: Path) -> AsyncIterator[Doors]:
    async with nest(model, tmp_path) as nodes, AsyncExitStack() as stack:
        await nodes.add((0, 2))
        await nodes.add((2, 4))
        yield Doors(nodes, stack)


async def thrown_out(peer: Peer) -> None:
    async with asyncio.timeout(GOSSIP_SECONDS):
        await peer.wait_closed()


async def test_a_guest_stays_a_guest(doors: Doors) -> None:
    invite = await doors.invite("--guest", "--expires", "1h")
    guest = await doors.attacker()
    welcome = await guest.say(doors.door(0), guest.by(invite, "guest", invite.token))
    proof = welcome.membership.proof
    for number in (0, 1):
        for token in (None, invite.token):
            with pytest.raises(InviteError, match="admits by invite|lets in guests"):
                await guest.say(doors.door(number), guest.by(invite, "node", token, proof))
        peer = guest.board.get(doors.door(number)[0])
        assert peer is not None
        await guest.say(doors.door(number), guest.by(invite, "guest", None, proof))
        for kind in ("mesh.secret", "mesh.want", "mesh.delta", "mesh.hello"):  # no other question brings more
            try:
                answer = await peer.call(Message(kind, {"role": "node", "proof": proof}), 3)
            except PeerError:
                continue
            assert not {"secret", "proof"} & set(answer.header)
    # What it signs itself: a proof and an invite for a friend.
    friend, swarm = await doors.attacker(), invite.swarm
    for chain in (proof, FOUNDER_PROOF):
        forged = extend_proof(chain, guest.identity, swarm, friend.identity.id, "node", 0, ())
        token = InviteToken(bytes(8), int(time.time()) + 600, "node", False, guest.identity.id, chain, b"")
        token = replace(token, signature=guest.identity.sign(token.signed_part(swarm)))
        for hello in (friend.by(invite, "node", None, forged), friend.by(invite, "node", token)):
            with pytest.raises(InviteError, match="admits by invite|not issued by a member"):
                await friend.say(doors.door(0), hello)


async def test_what_came_of_a_revoked_invite_ends_everywhere(doors: Doors) -> None:
    invite = await doors.invite()
    node, guest = await doors.attacker(), await doors.attacker()
    inside: Membership = (await node.say(doors.door(0), node.by(invite, "node", invite.token))).membership
    visitor = (await guest.say(doors.door(1), guest.by(invite, "guest", invite.token))).membership
    await node.say(doors.door(1), node.by(invite, "node", None, inside.proof))
    until = int(time.time()) + 3600
    minted, for_guests = inside.issue(until), inside.issue(until, role="guest")
    child = await doors.attacker()
    let_in = (await child.say(doors.door(1), child.by(invite, "node", minted))).membership
    grandchild = let_in.issue(until)
    connected = [(who.board.get(doors.door(n)[0])) for who, n in ((node, 0), (node, 1), (guest, 1), (child, 1))]
    assert all(peer is not None and peer.closed_reason is None for peer in connected)

    await doors.revoke(invite)

    for peer in connected:
        assert peer is not None
        await thrown_out(peer)
    later = inside.issue(until)
    for number in (0, 1):
        for token in (invite.token, minted, for_guests, grandchild, later):
            for role in ("node", "guest"):
                await doors.refused(number, Hello(invite.swarm, b"", role, None, token))
        await doors.refused(number, node.by(invite, "node", None, inside.proof), by=node)
        await doors.refused(number, node.by(invite, "guest", None, inside.proof), by=node)
        await doors.refused(number, guest.by(invite, "guest", None, visitor.proof), by=guest)
        await doors.refused(number, child.by(invite, "node", minted, let_in.proof), by=child)
    # A node that starts again knows from its own disk, before anybody can tell it.
    second = doors.nodes.nodes[1]
    second.signal(9)
    await second.ended()
    doors.nodes.nodes[0].signal(19)  # SIGSTOP: nobody tells it
    again = await doors.nodes.again(second)
    await doors.refused(1, node.by(invite, "node", None, inside.proof), by=node)
    await doors.refused(1, Hello(invite.swarm, b"", "node", None, grandchild))
    doors.nodes.nodes[0].signal(18)
    assert again.ready["node"] == second.ready["node"]


async def test_once_is_once_and_an_end_is_an_end(doors: Doors) -> None:
    invite = await doors.invite("--once")
    first, second = await doors.attacker(), await doors.attacker()
    with pytest.raises(InviteError, match="redeemed where it was issued"):
        await first.say(doors.door(1), first.by(invite, "node", invite.token))
    answers = await asyncio.gather(
        *(who.say(doors.door(0), who.by(invite, "node", invite.token)) for who in (first, second)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, Welcome) for answer in answers) == 1
    assert sum(isinstance(answer, InviteError) and "is used" in str(answer) for answer in answers) == 1

    short = await doors.invite("--guest", "--expires", "8s")
    guest = await doors.attacker()
    visitor = (await guest.say(doors.door(0), guest.by(short, "guest", short.token))).membership
    peer = guest.board.get(doors.door(0)[0])
    assert peer is not None
    await thrown_out(peer)
    assert short.token is not None and time.time() >= short.token.expires
    for number in (0, 1):
        await doors.refused(number, guest.by(short, "guest", None, visitor.proof), "has expired", by=guest)
        await doors.refused(number, guest.by(short, "guest", short.token), "expired", by=guest)


def test_the_hello_of_an_attacker_is_the_real_one() -> None:
    """So that what is refused above is refused for its content."""
    said = Hello(bytes(10), b"", "node", FOUNDER_PROOF, None)
    assert hello_message(said).header["proof"] == FOUNDER_PROOF


async def test_another_connection_of_the_same_key_ends_as_well(doors: Doors) -> None:
    """A second process with the guest's key takes the first one's place, says nothing, and is in on its word."""
    invite = await doors.invite("--guest", "--expires", "1h")
    guest = await doors.attacker()
    await guest.say(doors.door(0), guest.by(invite, "guest", invite.token))
    twin = await doors.stack.enter_async_context(Switchboard(guest.identity))
    node, address = doors.door(0)
    peer = await twin.peer(node, [address])
    await asyncio.sleep(0.5)
    await doors.revoke(invite)
    await thrown_out(peer)
