"""Connections to members: who said a valid hello here, whom this node says one to, and when such a connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Sequence
from typing import Protocol

from swarm.base.address import Address
from swarm.base.clock import TimeSource
from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId, short_id
from swarm.base.tasks import TaskOwner
from swarm.mesh import hello
from swarm.mesh.admission import Admission
from swarm.mesh.clocks import check_clocks
from swarm.mesh.distances import Distances
from swarm.mesh.event import DialFailed, Linked, Unlinked
from swarm.mesh.membership import InviteError, Revocation
from swarm.mesh.messages import BYE, HELLO
from swarm.mesh.record import NodeRecord
from swarm.mesh.saved import Saved
from swarm.net.channel.message import Message
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard

log = logging.getLogger(__name__)

DIAL_S = 5.0
CHECK_S = 2.0
DIALS_AT_ONCE = 8
CHECKS_AT_ONCE = 64
"""On top of the other dials."""
BARE_S = 30.0
"""How long a node that this one dialled may go without showing that it is a member."""
BACKLOG_BYTES = 8 * 1024 * 1024
FAREWELL_S = 1.0


class LinkState(Protocol):
    """The membership state behind the connections; `Gossip` keeps it."""

    def happen(self, event: Linked | Unlinked | DialFailed) -> None:
        """A link began or ended, or a dial failed."""

    def linked(self, node: NodeId) -> bool:
        """Whether `node` counts as a neighbour."""

    def banned(self, node: NodeId) -> bool:
        """Whether `node` is turned away."""

    def recorded(self, node: NodeId) -> Admission | None:
        """What the record of `node` shows, while it lives."""


class Neighbours:
    """Hellos of one node, in both directions, and a watch over what they opened.

    role       what this node says it is: "node" or "guest"
    distances  measures each new connection once
    tasks      watches and dials, for as long as this node takes part
    leaving    from when it is set nobody is admitted and nobody dialled
    """

    def __init__(
        self,
        board: Switchboard,
        saved: Saved,
        role: str,
        state: LinkState,
        distances: Distances,
        tasks: TaskOwner,
        time: TimeSource,
    ) -> None:
        self.ledger = saved.ledger
        self.leaving = False
        self._board, self._saved, self._membership = board, saved, saved.membership
        self._state, self._distances, self._tasks, self._time = state, distances, tasks, time
        self._asked = hello.Hello(self._membership.swarm, saved.model, role, self._membership.proof, None)
        self._seen: dict[NodeId, Peer] = {}
        self._shown: dict[NodeId, Admission] = {}
        """What each that is connected showed: the proof that its hello was granted, that its welcome bore, or that its
        record bears. It is kept for as long as any connection of that node lives, since one takes another's place."""
        self._bare: dict[NodeId, float] = {}
        """Who is connected and showed nothing, and since when."""
        self._dialling: set[NodeId] = set()

    def connected(self) -> Collection[Peer]:
        """Whoever said a valid hello on a connection that lives."""
        return self._seen.values()

    def knows(self, node: NodeId) -> bool:
        """Whether `node` is among them."""
        return node in self._seen

    def post(self, node: NodeId, message: Message) -> None:
        """Send to a node that is connected; who does not keep up is spared, since digests repair what it missed."""
        peer = self._board.get(node)
        if peer is None:
            return
        if peer.queued_bytes > BACKLOG_BYTES:
            log.info("node %s is slow; a %s was not sent, the next digest repairs it", short_id(node), message.kind)
            return
        with contextlib.suppress(PeerError):
            peer.post(message, priority=2, flow="mesh")

    async def farewell(self, nodes: Collection[NodeId]) -> None:
        """Say goodbye to these and wait a second at most until it is sent."""
        for node in nodes:
            self.post(node, Message(BYE))
        peers = [peer for node in nodes if (peer := self._board.get(node)) is not None]
        with contextlib.suppress(PeerError, TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await asyncio.gather(*(peer.flush() for peer in peers), return_exceptions=True)

    def turn_away(self, node: NodeId, why: str) -> None:
        """Close the connection to a node that broke the rules."""
        log.warning("node %s is turned away: %s", short_id(node), why)
        peer = self._board.get(node)
        if peer is not None:
            peer.drop(why)

    def revoked(self, notices: Sequence[Revocation]) -> tuple[Revocation, ...]:
        """Invites are of no use any more; which of these are news, said by whoever may say it, and found room."""
        if not notices:
            return ()
        before = self.ledger.revoked
        self.ledger = self.ledger.revoking(notices, self._membership, self._time.wall())
        now = self.ledger.revoked
        return tuple(item for item in notices if now.get(item.id) is item and before.get(item.id) is not item)

    def look_over(self) -> None:
        """See that everybody that is served as a member showed why, on this connection or one before it.

        A connection is served without a hello where the node's record lives, where it takes another's place, and where
        this node made it; what it rests on is noted, so that it ends with that. Where nothing comes, it ends.
        """
        now, peers = self._time.now(), self._board.peers()
        here = {peer.id for peer in peers}
        self._shown = {node: shown for node, shown in self._shown.items() if node in here}
        self._bare = {node: since for node, since in self._bare.items() if node in here}
        for peer in peers:
            if peer.stranger or peer.id in self._shown or not self._board.guarded:
                continue
            shown = self._state.recorded(peer.id)
            if shown is not None:
                self._shown[peer.id] = shown
                self._bare.pop(peer.id, None)
            elif now - self._bare.setdefault(peer.id, now) > BARE_S:
                self.turn_away(peer.id, f"it showed no proof of admission within {BARE_S:g} s")

    def end_void(self) -> None:
        """Part with everybody whose admission was revoked or has expired."""
        now = self._time.wall()
        for node, shown in list(self._shown.items()):
            why = shown.void(self.ledger.revoked, now)
            if why is not None:
                del self._shown[node]
                self.turn_away(node, f"its admission counts no more: {why}")

    def _check_clocks(self, peer: Peer, asked: hello.Hello) -> None:
        try:
            check_clocks(asked.clock, peer.id, self._board.id, self._time.wall())
        except InviteError as error:
            log.warning("%s", error)  # the caller shows it; whoever runs this node is to know as well
            raise

    def answer_untrusted(self, peer: Peer, message: Message) -> Message:
        """The answer to a hello: a welcome, or why not. Raises PeerError for what is no hello."""
        try:
            if self.leaving or self._state.banned(peer.id):
                why = "is leaving" if self.leaving else "turns this one away for a while: it broke the rules"
                raise InviteError(f"node {short_id(self._board.id)} {why}")
            asked = hello.parse_hello_untrusted(message.header)
            self._check_clocks(peer, asked)
            answer, self.ledger = hello.answer_hello(
                asked,
                peer.id,
                self._board.id,
                self._membership,
                self.ledger,
                self._saved.model,
                self._saved.ref,
                self._time.wall(),
            )
        except InviteError as error:
            return Message(HELLO, {"refused": str(error)})
        self._shown[peer.id] = self._membership.admission_untrusted(answer.header["proof"])
        peer.admit()
        # After the answer, so that the caller has its membership before the first delta arrives.
        asyncio.get_running_loop().call_soon(self._welcome, peer)
        return answer

    async def greet(self, node: NodeId, addresses: Sequence[Address], timeout: float = DIAL_S) -> None:
        """Say hello to `node` unless it is a neighbour. Raises InviteError when refused, PeerError when not reached."""
        if node == self._board.id or self._state.linked(node):
            return
        peer = await self._board.peer(node, addresses, timeout)
        answer = await peer.call(hello.hello_message(self._asked, self._time.wall()), timeout)
        welcome = hello.parse_welcome_untrusted(answer.header, self._membership.swarm, self._board.identity, node)
        shown = self._membership.admission_untrusted(welcome.shown)
        void = shown.void(self.ledger.revoked, self._time.wall())
        if void is not None:
            peer.drop(f"its admission counts no more: {void}")
            raise InviteError(f"node {short_id(node)} is no member any more: {void}")
        self._shown[node] = shown
        peer.admit()
        self._welcome(peer)

    def dial(self, record: NodeRecord, check: bool) -> None:
        """Greet the node of `record` beside everything else, if there is room; `check`: to see whether it lives."""
        room = len(self._dialling) < DIALS_AT_ONCE + CHECKS_AT_ONCE * check
        if room and not self.leaving and record.node not in self._dialling:
            self._dialling.add(record.node)
            self._tasks.spawn(self._dial(record, CHECK_S if check else DIAL_S))

    async def _dial(self, record: NodeRecord, timeout: float) -> None:
        try:
            await self.greet(record.node, record.addresses, timeout)
        except PeerError as error:
            log.debug("node %s was not reached: %s", short_id(record.node), error)
            self._state.happen(DialFailed(record.node))
        finally:
            self._dialling.discard(record.node)

    def _welcome(self, peer: Peer) -> None:
        """`peer` and this node may talk."""
        if self.leaving or peer.closed_reason is not None:
            if self._board.get(peer.id) is None:
                self._shown.pop(peer.id, None)
            return
        if self._seen.get(peer.id) is not peer:
            self._seen[peer.id] = peer
            self._tasks.spawn(self._watch(peer))
        if not self._state.linked(peer.id):
            self._state.happen(Linked(peer.id))

    async def _watch(self, peer: Peer) -> None:
        with contextlib.suppress(PeerError):
            await self._distances.ping(peer)
        await peer.wait_closed()
        if self._seen.get(peer.id) is peer:
            del self._seen[peer.id]
            self._state.happen(Unlinked(peer.id, polite=False))
