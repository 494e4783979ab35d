"""Reaching a node behind whatever it is behind: several ways are raced, the first that works is kept.

    direct    dial the addresses in the node's record, in HTTP where TCP alone does not lead there ("http")
    reverse   ask it, through a peer that both have, to dial this node
    punched   TCP simultaneous open, arranged by that peer
    relay     a WebSocket through a public peer, carrying ciphertext

Only one way may finish: each stops before the last handshake message unless it can claim the connection, so the other
side never sees a second one. A connection that the other side made meanwhile counts as well.

Who had to take the relay looks for a direct path again later, a few times, while no run uses the connection. Networks
change, and a rendezvous may have been missing; a direct path that is found takes the relay's place under the same peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Protocol

from swarm.base.address import Address
from swarm.base.errors import BusyError, PeerError, SwarmError, let_go
from swarm.base.nodeid import NodeId, short_id
from swarm.net.channel.limits import ReachLimits
from swarm.net.channel.message import Message
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.net.traversal.connect_methods import enter_room, open_at_once
from swarm.net.traversal.inbound import InboundTraversal
from swarm.net.traversal.messages import (
    ASK,
    KNOCK,
    KNOCK_REQUEST,
    KNOWN,
    KNOWS,
    MAX_ADDRESSES,
    RELAY_ROOM,
    SOUGHT,
    KnockRequest,
    Sought,
    parse_knock_untrusted,
)
from swarm.net.traversal.race import Race
from swarm.net.traversal.rendezvous import Rendezvous

log = logging.getLogger(__name__)

_ROUNDS = 4
"""Round trips that a direct path takes to be arranged and opened, on top of the relay's own wait."""
UPGRADE_SECONDS = 8.0
"""For one search for a direct path beside a relayed connection."""


class Introducer(Protocol):
    """Knows whom to ask for a node that no peer is connected to."""

    async def introduce(self, node: NodeId) -> None:
        """Connect to nodes that may be connected to `node`. May raise SwarmError where that does not work."""


SOONER_S = 0.25
"""So much before the end of its time a search gives up, so that whoever waits as long hears why."""


class Reach:
    """Puts itself in front of the switchboard's dialling, and serves the other side of it.

    `addresses` are what others may dial besides the ports that this node listens on. With `relay` false it neither uses
    relays nor follows a call into one; `offers_relay`: this node relays for others. Only members are served.
    `introducer` helps where no peer is connected to the node that is wanted.
    """

    def __init__(
        self,
        board: Switchboard,
        *,
        addresses: Sequence[Address] = (),
        relay: bool = True,
        offers_relay: bool = False,
        introducer: Introducer | None = None,
        limits: ReachLimits | None = None,
    ) -> None:
        self._board = board
        self._addresses = addresses
        self._relay = relay
        self._introducer = introducer
        self.limits = limits or ReachLimits()
        self.visits = InboundTraversal(board, relay, self.limits)
        self.rendezvous = Rendezvous(board, offers_relay)
        board.connector = self

    async def connect(self, node: NodeId, addresses: Sequence[Address], timeout: float) -> None:
        """Make `node` a peer of the switchboard by the first way that works; PeerError says why each did not."""
        await self._race(Race(self._board, node), addresses, timeout, self._relay)
        peer = self._board.get(node)
        if peer is not None and peer.edge == "relay":
            self._board.spawn(self._leave_relay(peer, tuple(addresses)))

    async def _race(self, race: Race, addresses: Sequence[Address], timeout: float, relay: bool) -> None:
        node = race.node
        delay = self.limits.knock_after if addresses else 0.0
        mutual = asyncio.create_task(self._mutual(node, delay))
        ways = {"punched": self._punched(race, mutual)}
        if addresses:
            ways["direct"] = self._board.dial(node, addresses, timeout, "direct", race.claim("direct"))
        if relay:
            ways["relay"] = self._relayed(race, mutual, time.monotonic() + self.limits.relay_after)
        self._board.inbound_edges[node] = "reverse"
        try:
            async with asyncio.timeout(timeout - min(SOONER_S, timeout / 8)):
                await race.run(ways)
        except TimeoutError as exc:
            why = f" ({'; '.join(race.reasons)})" if race.reasons else ""
            raise PeerError(f"node {short_id(node)} was not reached within {timeout:g} s{why}") from exc
        finally:
            # a dial back that is under way still counts as one
            asyncio.get_running_loop().call_later(self.limits.punch, self._board.inbound_edges.pop, node, None)
            mutual.cancel()
            for error in await asyncio.gather(mutual, return_exceptions=True):
                if isinstance(error, BaseException):
                    let_go(error)  # each way waited for it, and is in its frames
            self._board.await_no_more(node)

    # -- leaving the relay

    async def _leave_relay(self, peer: Peer, addresses: Sequence[Address]) -> None:
        """Look for a direct path now and then, until there is one, the connection ends, or the searches are used up."""
        for pause in self.limits.upgrade_after:
            if not await self._free(peer, pause):
                return
            with contextlib.suppress(PeerError):
                race = Race(self._board, peer.id, over_relay=True)
                await self._race(race, addresses, UPGRADE_SECONDS, relay=False)
            if peer.edge != "relay":
                log.info("node %s is reached without the relay now (%s)", short_id(peer.id), peer.edge)
                with contextlib.suppress(PeerError):
                    await peer.ping(3)
                return

    async def _free(self, peer: Peer, pause: float) -> bool:
        """Wait `pause` seconds, then for a moment in which nothing uses the connection; whether it still is relayed."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await peer.wait_closed()
            if peer.closed_reason is not None or peer.edge != "relay":
                return False
            if not peer.busy:
                return True
            pause = self.limits.upgrade_busy

    # -- the ways that need a mutual peer

    async def _mutual(self, node: NodeId, delay: float) -> list[tuple[Peer, bool]]:
        """Peers that are connected to `node`, nearest first, and whether each offers to relay. Raises PeerError."""
        await asyncio.sleep(delay)
        found = await self._who_knows(node)
        if not found and self._introducer is not None:
            with contextlib.suppress(SwarmError, TimeoutError):
                async with asyncio.timeout(self.limits.introduce):
                    await self._introducer.introduce(node)
            found = await self._who_knows(node)
        if not found:
            raise PeerError(f"none of {len(self._board.peers())} peers is connected to it")
        return found

    async def _who_knows(self, node: NodeId) -> list[tuple[Peer, bool]]:
        others = [peer for peer in self._board.peers() if peer.id != node]
        nearest = sorted(others, key=lambda peer: peer.rtt_ms or 1000.0)[: self.limits.rendezvous]

        async def ask(peer: Peer) -> tuple[Peer, bool] | None:
            try:
                asked = Message(KNOWS, SOUGHT.header(Sought(node)))
                answer = KNOWN.read_untrusted((await peer.call(asked, timeout=2.0)).header)
            except SwarmError:
                return None
            return (peer, answer.relay) if answer.knows else None

        return [pair for pair in await asyncio.gather(*map(ask, nearest)) if pair is not None]

    async def _punched(self, race: Race, mutual: asyncio.Task[list[tuple[Peer, bool]]]) -> None:
        """Ask a mutual peer to arrange a simultaneous open; the other side also dials this node's addresses."""
        reason = PeerError("no mutual peer arranged it")
        asked = Message(KNOCK, KNOCK_REQUEST.header(KnockRequest(race.node, self._own_addresses())))
        for via, _ in (await asyncio.shield(mutual))[:3]:
            try:
                answer = await via.call(asked, timeout=3.0)
                knock = parse_knock_untrusted(answer.header)
            except (PeerError, BusyError) as exc:
                reason = PeerError(str(exc))
                continue
            dialled_back = asyncio.create_task(asyncio.sleep(self.limits.dial_back + knock.wait_ms / 1000))
            await asyncio.sleep(knock.wait_ms / 1000)
            claim = race.claim("punched")
            try:
                if knock.seen is None:
                    raise PeerError("it is connected by HTTP alone and did not dial back")
                await open_at_once(
                    self._board, self.limits, via, knock.seen, initiator=True, node=race.node, claim=claim
                )
            except PeerError:
                await dialled_back  # the race sees it when the target comes by itself
                raise
            finally:
                dialled_back.cancel()
            return
        raise reason

    def _own_addresses(self) -> tuple[Address, ...]:
        """Where the other side may dial back; "0.0.0.0" stands for this node's host as others see it."""
        seen = [("0.0.0.0", port) for _, port in self._board.listening]
        return tuple(dict.fromkeys([*seen, *self._addresses]))[:MAX_ADDRESSES]

    async def _relayed(self, race: Race, mutual: asyncio.Task[list[tuple[Peer, bool]]], not_before: float) -> None:
        relays = [peer for peer, offers in await asyncio.shield(mutual) if offers]
        reason: SwarmError = PeerError(
            "no mutual peer offers to relay: start one that both can dial with --relay (cause: nat)"
        )
        farther = max((peer.rtt_ms or 0.0 for peer in relays), default=0.0) / 1000
        await asyncio.sleep(max(0.0, not_before + _ROUNDS * farther - time.monotonic()))
        for via in relays:
            try:
                asked = Message(ASK, SOUGHT.header(Sought(race.node)))
                room = RELAY_ROOM.read_untrusted((await via.call(asked, timeout=3.0)).header)
                sock = await enter_room(self._board, via, room)
                await self._board.adopt(sock, initiator=True, expect=race.node, edge="relay", claim=race.claim("relay"))
                return
            except (PeerError, BusyError) as exc:
                reason = exc
        raise PeerError(str(reason))
