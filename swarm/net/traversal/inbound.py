"""The side that is asked: a node that hears, from a peer, that somebody wants to reach it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time

from swarm.base.address import Address
from swarm.base.errors import PeerError
from swarm.base.nodeid import short_id
from swarm.net.channel.limits import ReachLimits
from swarm.net.channel.message import Message
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.net.traversal.connect_methods import enter_room, open_at_once
from swarm.net.traversal.messages import JOIN, KNOCKED, RELAY_CALL, Knock, RelayCall, parse_knock_untrusted
from swarm.net.traversal.race import Race
from swarm.net.traversal.rendezvous import EventQuota, require_admitted

log = logging.getLogger(__name__)


class InboundTraversal:
    """Follows knocks, and calls into a relay's room unless `relay` is false; both only from members.

    A node that is reached through a relay already is visited all the same: the direct path takes the relay's place.
    """

    def __init__(self, board: Switchboard, relay: bool, limits: ReachLimits) -> None:
        self._board, self._relay, self._limits = board, relay, limits
        self._quota = EventQuota(limits.visits_per_minute, 60.0)
        board.handle(KNOCKED, self._on_knocked)
        board.handle(JOIN, self._on_join)

    async def _on_knocked(self, via: Peer, message: Message) -> None:
        require_admitted(self._board, via)
        knock = parse_knock_untrusted(message.header)
        present = self._board.get(knock.node)
        if (present is None or present.edge == "relay") and self._quota.take(time.monotonic()):
            self._board.spawn(self._come(via, knock))

    async def _come(self, via: Peer, knock: Knock) -> None:
        """Dial the asker back and open a connection at once with it, whichever works."""
        await asyncio.sleep(knock.wait_ms / 1000)
        race = Race(self._board, knock.node, over_relay=True)
        ways: list[asyncio.Future[None]] = []
        if knock.seen is not None:
            at_once = open_at_once(self._board, self._limits, via, knock.seen, initiator=False, node=knock.node)
            ways.append(asyncio.ensure_future(at_once))
        if back := dial_back_addresses(knock):
            claim = race.claim("reverse")
            dialled = self._board.dial(knock.node, back, self._limits.dial_back, "reverse", claim)
            ways.append(asyncio.ensure_future(dialled))
        for result in await asyncio.gather(*ways, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, PeerError):
                raise result

    async def _on_join(self, via: Peer, message: Message) -> None:
        require_admitted(self._board, via)
        call = RELAY_CALL.read_untrusted(message.header)
        if not self._relay:
            raise PeerError("this node takes no relayed connections (--no-relay)")
        if self._board.get(call.node) is None and self._quota.take(time.monotonic()):
            self._board.spawn(self._come_through_relay(via, call))

    async def _come_through_relay(self, via: Peer, call: RelayCall) -> None:
        try:
            sock = await enter_room(self._board, via, call.room)
            await self._board.adopt(sock, initiator=False, expect=call.node, edge="relay")
        except PeerError as exc:
            log.debug("the relayed connection of node %s did not come about: %s", short_id(call.node), exc)


def dial_back_addresses(knock: Knock) -> list[Address]:
    """Which of the asker's addresses this node dials when it is asked to: none that could hurt a third party.

    Those on the host that the rendezvous saw the asker at ("0.0.0.0" and "::" stand for it); private ones too when
    both sides come from one host, that is, when they sit behind one NAT.
    """
    if knock.seen is None:
        return []
    seen = knock.seen[0]
    addresses = [(seen if host in ("0.0.0.0", "::") else host, port) for host, port in knock.addresses]
    behind_one_nat = seen == knock.self_seen[0]
    return [a for a in dict.fromkeys(addresses) if a[0] == seen or (behind_one_nat and _is_private(a[0]))]


_PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)


def _is_private(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address.version == network.version and address in network for network in _PRIVATE)
