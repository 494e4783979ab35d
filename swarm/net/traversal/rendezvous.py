"""The rendezvous: how a node that two others are connected to helps them find a direct path.

    asker -> rendezvous    knock   "I want to reach T; these are my addresses"
    rendezvous -> T        knocked "A wants you; it looks like this from here; begin in so many ms"
    rendezvous -> asker    answer  "T looks like this from here; begin in so many ms"

Then T dials the asker's addresses, and both open a TCP connection to each other at the same moment from the port that
each already uses towards the rendezvous, whose mapping in their NATs is alive (TCP simultaneous open, RFC 9293 3.5).
Every node is a rendezvous for its peers: it costs two small messages. It also tells a peer where it sees it, and
whether the peer's port can be dialled from outside ("check").
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from swarm.base.address import Address
from swarm.base.errors import BusyError, PeerError
from swarm.base.nodeid import NodeId, short_id
from swarm.net.channel.message import Message
from swarm.net.members import Members
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.net.traversal.messages import (
    CHECK,
    KNOCK,
    KNOCK_REQUEST,
    KNOCKED,
    KNOWN,
    KNOWS,
    MAX_WAIT_MS,
    PORT_ANSWER,
    PORT_REQUEST,
    SOUGHT,
    Knock,
    KnowsAnswer,
    PortAnswer,
    PortRequest,
)

CHECK_SECONDS = 2.0
KNOCKS_PER_MINUTE = 120


@dataclass
class EventQuota:
    """At most `count` events in `seconds`; `take` says whether one more is within it. Pure: `now` in seconds."""

    count: int
    seconds: float
    _times: deque[float] = field(default_factory=deque)

    def take(self, now: float) -> bool:
        while self._times and self._times[0] <= now - self.seconds:
            self._times.popleft()
        if len(self._times) >= self.count:
            return False
        self._times.append(now)
        return True


class Rendezvous:
    """Answers KNOWS and KNOCK for those peers of `board` that are members.

    `offers_relay` says whether this node relays as well.
    """

    def __init__(self, board: Switchboard, offers_relay: bool) -> None:
        self._board = board
        self._offers_relay = offers_relay
        self._quotas: dict[NodeId, EventQuota] = {}
        board.handle(KNOWS, self._on_knows)
        board.handle(KNOCK, self._on_knock)
        board.handle(CHECK, self._on_check)

    async def _on_knows(self, peer: Peer, message: Message) -> Message:
        require_admitted(self._board, peer)
        target = self._board.get(SOUGHT.read_untrusted(message.header).node)
        return Message(KNOWS, KNOWN.header(KnowsAnswer(target is not None, self._offers_relay)))

    async def _on_knock(self, asker: Peer, message: Message) -> Message:
        """Tell both sides of each other, so that both begin at the same moment."""
        require_admitted(self._board, asker)
        asked = KNOCK_REQUEST.read_untrusted(message.header)
        node = asked.node
        if not self._take_quota(asker.id):
            raise BusyError(f"node {short_id(asker.id)} knocks too often; try again in a minute")
        target = self._board.get(node)
        if target is None or target is asker:
            raise PeerError(f"node {short_id(self._board.id)} is not connected to node {short_id(node)}")
        if asker.tunnelled or target.edge == "relay":
            raise PeerError("a connection that goes through HTTP itself shows no address to open")
        wait_asker, wait_target = waits_ms(await _rtt_ms(asker), await _rtt_ms(target))
        knocked = Knock(asker.id, asker.address, target.address, asked.addresses, wait_target)
        await target.send(Message(KNOCKED, knocked.header()))
        seen = None if target.tunnelled else target.address  # it can only come by itself then
        return Message(KNOCK, Knock(node, seen, asker.address, (), wait_asker).header())

    async def _on_check(self, asker: Peer, message: Message) -> Message:
        """Dial the asker's own host at the port that it names, and nothing else."""
        require_admitted(self._board, asker)
        port = PORT_REQUEST.read_untrusted(message.header).port
        if not self._take_quota(asker.id):
            raise BusyError(f"node {short_id(asker.id)} asks too often; try again in a minute")
        outer = (asker.address[0], port)
        is_open = asker.edge != "relay" and await self._board.proves(asker.id, outer, CHECK_SECONDS)
        return Message(CHECK, PORT_ANSWER.header(PortAnswer(asker.address, is_open)))

    def _take_quota(self, node: NodeId) -> bool:
        for gone in [other for other in self._quotas if self._board.get(other) is None]:
            del self._quotas[gone]
        return self._quotas.setdefault(node, EventQuota(KNOCKS_PER_MINUTE, 60.0)).take(time.monotonic())


async def check_port(via: Peer, port: int) -> tuple[Address, bool]:
    """Where `via` sees this node, and whether this node answers there at `port`. Raises PeerError, BusyError."""
    asked = Message(CHECK, PORT_REQUEST.header(PortRequest(port)))
    answer = PORT_ANSWER.read_untrusted((await via.call(asked, timeout=2 * CHECK_SECONDS)).header)
    return answer.seen, answer.open


def require_admitted(members: Members, peer: Peer) -> None:
    """Raises PeerError for a peer that is not a member: strangers get no help in reaching others."""
    if not members.admitted(peer.id):
        raise PeerError(f"node {short_id(peer.id)} is not a member of this swarm; it has to say hello first")


def waits_ms(rtt_a_ms: float, rtt_b_ms: float) -> tuple[float, float]:
    """How long a and b wait after their message so that both begin at once: the nearer one waits for the farther."""
    difference = min(abs(rtt_a_ms - rtt_b_ms) / 2, MAX_WAIT_MS)
    return (difference, 0.0) if rtt_a_ms < rtt_b_ms else (0.0, difference)


async def _rtt_ms(peer: Peer) -> float:
    if peer.rtt_ms is None:
        await peer.ping(2, timeout=2.0)
    return peer.rtt_ms or 0.0
