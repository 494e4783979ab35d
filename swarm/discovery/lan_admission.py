"""Admission on the local network by the owner's word (`swarm.mesh.pairing`): a member's side, and a newcomer's."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
from collections.abc import Sequence
from typing import Protocol

from swarm.base.clock import SystemTime, TimeSource
from swarm.base.errors import BusyError, PeerError, UsageError
from swarm.base.events import Notice, Report
from swarm.base.nodeid import NodeId, short_id
from swarm.base.owner import MachineOwner, OwnerDesk, Question
from swarm.base.tasks import TaskOwner
from swarm.discovery.obstacles import own_networks
from swarm.mesh import pairing
from swarm.mesh.hello import Hello, enter
from swarm.mesh.lan import LanNode
from swarm.mesh.membership import InviteToken, Membership
from swarm.mesh.pairing import (
    ANSWERS,
    PAIR,
    STEPS,
    Admitted,
    Answer,
    AskIn,
    Committed,
    Door,
    Share,
    Shown,
    Wait,
    Waiting,
)
from swarm.mesh.saved import Saved
from swarm.net.channel.message import Message
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard

CALL_S = 5.0
LOOK_S = 0.5


class Admissions(Protocol):
    """Who keeps account of machines that were let in."""

    def admitted(self, node: NodeId, token: InviteToken) -> None:
        """`node` was let in by this token."""


class PairingDoor:
    """A member that lets in who is near and whose code its owner confirms."""

    def __init__(
        self,
        here: NodeId,
        membership: Membership,
        desk: OwnerDesk,
        tasks: TaskOwner,
        admissions: Admissions,
        time: TimeSource | None = None,
    ) -> None:
        self._here, self._membership, self._desk, self._tasks = here, membership, desk, tasks
        self._admissions, self._time = admissions, time or SystemTime()
        self._door = Door()
        self._token: tuple[NodeId, InviteToken] | None = None
        self._asking: asyncio.Task[None] | None = None

    async def handle(self, peer: Peer, message: Message) -> Message:
        """One step of a newcomer. Raises PeerError, BusyError."""
        if peer.edge != "direct" or not is_near(peer.address[0], own_networks()):
            raise PeerError("a code is shown to machines of the same local network alone; ask for an invite")
        step = STEPS.read_untrusted(message.header)
        return Message(PAIR, ANSWERS.header(self._answer(peer, step)))

    def _answer(self, peer: Peer, step: pairing.Step) -> Answer:
        now, swarm = self._time.now(), self._membership.swarm
        if isinstance(step, Share):
            self._door = pairing.shared(self._door, peer.id, self._here, swarm, step.nonce, now)
            return self._show(peer, now)
        if step.swarm != swarm:
            raise PeerError("that machine belongs to another swarm by now; try again")
        if isinstance(step, Wait):
            self._door = pairing.waits(self._door, peer.id, now)
            found = self._door.pairing
            assert found is not None
            return Admitted(self._token_for(peer.id, found)) if found.agreed else Waiting(found.ends - now)
        if self._desk.question is not None and self._door.at(now).pairing is None:
            raise BusyError("another question waits for the owner of that machine; try again in two minutes")
        nonce = secrets.token_bytes(pairing.NONCE_BYTES)
        self._door = pairing.asked(self._door, peer.id, step.role, nonce, now)
        return Committed(pairing.commitment(swarm, self._here, peer.id, nonce))

    def _show(self, peer: Peer, now: float) -> Shown:
        found = self._door.pairing
        assert found is not None
        host = peer.address[0].removeprefix("::ffff:")
        what = "join this swarm" if found.role == "node" else "use this swarm"
        text = f"a machine at {host} (node {short_id(peer.id)}) asks to {what}. Does it show the code {found.code}?"
        self._asking = self._tasks.spawn(self._ask_owner(peer.id, Question(text, found.code), self._asking))
        return Shown(found.nonce, found.ends - now, self._desk.at_terminal())

    async def _ask_owner(self, node: NodeId, question: Question, before: asyncio.Task[None] | None) -> None:
        """Until the owner answers, or the newcomer is gone. `before`: about a code that this one takes the place of."""
        if before is not None:
            before.cancel()
            await asyncio.wait({before})
        answer = asyncio.ensure_future(self._desk.agrees(question))
        try:
            while not answer.done():
                await asyncio.wait({answer}, timeout=LOOK_S)
                found = self._door.at(self._time.now()).pairing
                if found is None or found.node != node or found.code != question.code:
                    return
            with contextlib.suppress(BusyError):
                self._door = pairing.decided(self._door, node, question.code, answer.result(), self._time.now())
        finally:
            answer.cancel()
            await asyncio.wait({answer})

    def _token_for(self, node: NodeId, found: pairing.Pairing) -> InviteToken:
        """The one token that this newcomer gets, however often it asks."""
        if self._token is None or self._token[0] != node or self._token[1].expires <= self._time.wall():
            expires = int(self._time.wall()) + pairing.TOKEN_S
            self._token = (node, self._membership.issue(expires, once=True, role=found.role))
            self._admissions.admitted(node, self._token[1])
        return self._token[1]


def is_near(host: str, networks: Sequence[str]) -> bool:
    """Whether an address is of this machine or of one of the networks that it is in, such as "192.168.1.0/24"."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback or address.is_link_local:
        return True
    found = (ipaddress.ip_network(text, strict=False) for text in networks)
    return any(network.version == address.version and address in network for network in found)


async def ask_owner_there(
    board: Switchboard, heard: Sequence[LanNode], model: bytes, owner: MachineOwner, report: Report
) -> Saved | None:
    """AskIn to be let in where one swarm that serves `model` was heard which admits by invite only.

    Returns None where there is none such or several, or none of its members shows codes. Raises UsageError when nobody
    confirmed, PeerError when the member was lost on the way.
    """
    asked = [node for node in heard if not node.open and (not model or not node.model or node.model == model)]
    if len({node.swarm for node in asked}) != 1:
        return None
    for node in asked:
        try:
            peer = await board.peer(node.node, node.addresses, CALL_S)
            first = await _call(peer, AskIn(node.swarm, "node"))
            nonce = secrets.token_bytes(pairing.NONCE_BYTES)
            shown = await _call(peer, Share(nonce))
        except (PeerError, BusyError) as error:
            report(Notice(f"node {short_id(node.node)} of the local network shows no code: {error}"))
            continue
        if not isinstance(first, Committed) or not isinstance(shown, Shown):
            raise PeerError(f"node {short_id(node.node)} answered out of turn; ask for an invite there: swarm invite")
        if not pairing.keeps(first.commitment, node.swarm, node.node, board.id, shown.nonce):
            raise PeerError(
                f"node {short_id(node.node)} did not keep to what it had committed to: it wants to choose the code; "
                "use an invite"
            )
        code = pairing.code_of(node.swarm, node.node, board.id, shown.nonce, nonce)
        return await _both_agree(board, node, model, owner, code, shown)
    return None


async def _both_agree(
    board: Switchboard, node: LanNode, model: bytes, owner: MachineOwner, code: str, shown: Shown
) -> Saved:
    """Wait for the member's owner and for this one's, then enter. Raises UsageError, PeerError."""
    host = node.addresses[0][0]
    where = "the terminal of swarm join there" if shown.terminal else "its log; confirm there with: swarm admit"
    text = (
        f"the swarm heard at {host} (node {short_id(node.node)}) admits by invite, or by its owner's word. Does that "
        f"machine show the code {code} ({where})? Confirm it there and here."
    )
    here = asyncio.ensure_future(owner.agrees(Question(text, code)))
    there = asyncio.ensure_future(_granted(board, node))
    try:
        async with asyncio.timeout(shown.seconds):
            await asyncio.wait({here, there}, return_when=asyncio.FIRST_COMPLETED)
            if here.done() and not here.result():
                raise UsageError("the codes differ, by the word of this machine's owner: not joined; use an invite")
            token = await there
            if not await here:
                raise UsageError("the codes differ, by the word of this machine's owner: not joined; use an invite")
    except TimeoutError:
        raise UsageError(
            f"nobody confirmed the code {code} on both machines within {shown.seconds:.0f} seconds; run swarm join "
            "again, or use an invite: on the other machine swarm invite, here swarm join --swarm INVITE"
        ) from None
    finally:
        here.cancel()
        there.cancel()
        await asyncio.gather(here, there, return_exceptions=True)
    hello = Hello(node.swarm, model[:16], "node", None, token)
    welcome, _ = await enter(board, hello, [(node.node, node.addresses)])
    return Saved(welcome.membership, welcome.model, welcome.ref, ((node.node, node.addresses),))


async def _granted(board: Switchboard, node: LanNode) -> InviteToken:
    """AskIn until the member's owner has spoken. Strangers' connections are short, so each time it may be another."""
    missed = 0
    while True:
        try:
            peer = await board.peer(node.node, node.addresses, CALL_S)
            answer = await _call(peer, Wait(node.swarm))
        except PeerError:
            missed += 1
            if board.get(node.node) is not None or missed > pairing.GONE_S / CALL_S:
                raise  # it refused, or is gone for good
            continue
        missed = 0
        if isinstance(answer, Admitted):
            return answer.token
        await asyncio.sleep(pairing.POLL_S)


async def _call(peer: Peer, step: pairing.Step) -> Answer:
    answer = await peer.call(Message(PAIR, STEPS.header(step)), CALL_S)
    return ANSWERS.read_untrusted(answer.header)
