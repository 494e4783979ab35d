"""Reaching a node behind whatever it is behind: several ways are raced, the first that works is kept.

    direct    dial the addresses in the node's record
    reverse   ask it, through a peer that both have, to dial this node
    punched   TCP simultaneous open, arranged by that peer
    relay     a WebSocket through a public peer, carrying ciphertext

Only one way may finish: each stops before the last handshake message unless it can claim the connection, so the other
side never sees a second one. A connection that the other side made meanwhile counts as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import re
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.errors import BusyError, PeerError, SwarmError
from swarm.net.address import Address, format_address
from swarm.net.dial import connect, connect_one
from swarm.net.message import Message
from swarm.net.nodeid import NodeId, check_id_untrusted, short_id
from swarm.net.peer import Peer
from swarm.net.race import Race
from swarm.net.relay import ASK, JOIN
from swarm.net.rendezvous import (
    KNOCK,
    KNOCKED,
    KNOWS,
    MAX_ADDRESSES,
    Knock,
    Quota,
    Rendezvous,
    parse_addresses_untrusted,
    parse_knock_untrusted,
    require_admitted,
)
from swarm.net.switchboard import Switchboard
from swarm.net.tunnel import join_room

log = logging.getLogger(__name__)

_NO_LINGER = struct.pack("ii", 1, 0)
"""A punched connection ends with a reset: TIME_WAIT would keep the same two ports from being opened again."""
_ROUNDS = 4
"""Round trips that a direct path takes to be arranged and opened, on top of the relay's own wait."""
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,64}")


@dataclass(frozen=True)
class ReachLimits:
    """Head starts and bounds, in seconds where nothing else is said."""

    knock_after: float = 0.15
    """Reverse dial and punch begin so long after the direct dial."""
    relay_after: float = 1.2
    """The relay joins the race so long after the direct dial; a direct path that can be had is had by then."""
    punch: float = 2.5
    """How long both sides try to open a connection at once."""
    dial_back: float = 2.5
    """How long the target dials the asker, and the asker waits for it."""
    punch_retry: float = 0.02
    """Pause after a refused attempt: the other NAT answered because its own side had not begun."""
    introduce: float = 3.0
    """For connecting to nodes that may know the one that is wanted."""
    rendezvous: int = 8
    """Peers that are asked whether they know the node."""
    visits_per_minute: int = 60
    """Knocks and relay calls that this node follows."""


async def _nobody(node: NodeId) -> None:
    """Knows nobody who may know `node`."""


class Reach:
    """Puts itself in front of the switchboard's dialling, and serves the other side of it.

    `addresses` are what others may dial besides the ports that this node listens on. With `relay` false it neither uses
    relays nor follows a call into one. `admitted` says which peers are members: only they are served.
    `introduce` connects to nodes that may be connected to the one that is wanted, where no peer is.
    """

    def __init__(
        self,
        board: Switchboard,
        *,
        addresses: Callable[[], Sequence[Address]] = tuple,
        relay: bool = True,
        offers_relay: Callable[[], bool] = lambda: False,
        admitted: Callable[[NodeId], bool] = lambda node: True,
        introduce: Callable[[NodeId], Awaitable[None]] = _nobody,
        limits: ReachLimits | None = None,
    ) -> None:
        self._board = board
        self._addresses = addresses
        self._relay = relay
        self._admitted = admitted
        self._introduce = introduce
        self.limits = limits or ReachLimits()
        self._visits = Quota(self.limits.visits_per_minute, 60.0)
        self.rendezvous = Rendezvous(board, admitted, offers_relay)
        board.handle(KNOCKED, self._on_knocked)
        board.handle(JOIN, self._on_join)
        board.connector = self.connect

    # -- the asking side

    async def connect(self, node: NodeId, addresses: Sequence[Address], timeout: float) -> None:
        """Make `node` a peer of the switchboard by the first way that works; PeerError says why each did not."""
        race = Race(self._board, node)
        delay = self.limits.knock_after if addresses else 0.0
        mutual = asyncio.create_task(self._mutual(node, delay))
        ways = {"punched": self._punched(race, mutual)}
        if addresses:
            ways["direct"] = self._direct(race, addresses, timeout)
        if self._relay:
            ways["relay"] = self._relayed(race, mutual, time.monotonic() + self.limits.relay_after)
        self._board.inbound_edges[node] = "reverse"
        try:
            async with asyncio.timeout(timeout):
                await race.run(ways)
        except TimeoutError as exc:
            raise PeerError(f"node {short_id(node)} was not reached within {timeout:g} s") from exc
        finally:
            # a dial back that is under way still counts as one
            asyncio.get_running_loop().call_later(self.limits.punch, self._board.inbound_edges.pop, node, None)
            mutual.cancel()
            await asyncio.gather(mutual, return_exceptions=True)

    async def _direct(self, race: Race, addresses: Sequence[Address], timeout: float) -> None:
        sock, _ = await connect(addresses, timeout)
        await self._board.adopt(sock, initiator=True, expect=race.node, edge="direct", claim=race.claim("direct"))

    async def _mutual(self, node: NodeId, delay: float) -> list[tuple[Peer, bool]]:
        """Peers that are connected to `node`, nearest first, and whether each offers to relay. Raises PeerError."""
        await asyncio.sleep(delay)
        found = await self._who_knows(node)
        if not found:
            with contextlib.suppress(SwarmError, TimeoutError):
                async with asyncio.timeout(self.limits.introduce):
                    await self._introduce(node)
            found = await self._who_knows(node)
        if not found:
            raise PeerError(f"none of {len(self._board.peers())} peers is connected to it")
        return found

    async def _who_knows(self, node: NodeId) -> list[tuple[Peer, bool]]:
        others = [peer for peer in self._board.peers() if peer.id != node]
        nearest = sorted(others, key=lambda peer: peer.rtt_ms or 1000.0)[: self.limits.rendezvous]

        async def ask(peer: Peer) -> tuple[Peer, bool] | None:
            try:
                answer = await peer.call(Message(KNOWS, {"node": node}), timeout=2.0)
            except SwarmError:
                return None
            return (peer, answer.header.get("relay") is True) if answer.header.get("knows") is True else None

        return [pair for pair in await asyncio.gather(*map(ask, nearest)) if pair is not None]

    async def _punched(self, race: Race, mutual: asyncio.Task[list[tuple[Peer, bool]]]) -> None:
        """Ask a mutual peer to arrange a simultaneous open; the other side also dials this node's addresses."""
        reason = PeerError("no mutual peer arranged it")
        header = {"node": race.node, "addresses": self._own_addresses()}
        for via, _ in (await asyncio.shield(mutual))[:3]:
            try:
                answer = await via.call(Message(KNOCK, header), timeout=3.0)
                knock = parse_knock_untrusted(answer.header)
            except (PeerError, BusyError) as exc:
                reason = PeerError(str(exc))
                continue
            dialled_back = asyncio.create_task(asyncio.sleep(self.limits.dial_back + knock.wait_ms / 1000))
            await asyncio.sleep(knock.wait_ms / 1000)
            try:
                await self._open_at_once(via, knock.seen, initiator=True, node=race.node, claim=race.claim("punched"))
            except PeerError:
                await dialled_back  # the race sees it when the target comes by itself
                raise
            finally:
                dialled_back.cancel()
            return
        raise reason

    def _own_addresses(self) -> list[str]:
        """Where the other side may dial back; "0.0.0.0" stands for this node's host as others see it."""
        seen = [("0.0.0.0", port) for _, port in self._board.listening]
        return [format_address(a) for a in dict.fromkeys([*seen, *self._addresses()])][:MAX_ADDRESSES]

    async def _relayed(self, race: Race, mutual: asyncio.Task[list[tuple[Peer, bool]]], not_before: float) -> None:
        relays = [peer for peer, offers in await asyncio.shield(mutual) if offers]
        reason: SwarmError = PeerError("no mutual peer offers to relay")
        farther = max((peer.rtt_ms or 0.0 for peer in relays), default=0.0) / 1000
        await asyncio.sleep(max(0.0, not_before + _ROUNDS * farther - time.monotonic()))
        for via in relays:
            try:
                answer = await via.call(Message(ASK, {"node": race.node}), timeout=3.0)
                sock = await self._enter(via, answer.header)
                await self._board.adopt(sock, initiator=True, expect=race.node, edge="relay", claim=race.claim("relay"))
                return
            except (PeerError, BusyError) as exc:
                reason = exc
        raise PeerError(str(reason))

    # -- both sides

    async def _open_at_once(
        self, via: Peer, target: Address, *, initiator: bool, node: NodeId, claim: Callable[[], None] = lambda: None
    ) -> None:
        """TCP simultaneous open with `target`, from the port that is in use towards `via`. Raises PeerError."""
        source = via.local_address
        if via.edge == "relay" or not source[1]:
            raise PeerError("the connection to the rendezvous has no port to open")
        try:
            async with asyncio.timeout(self.limits.punch):
                while True:
                    try:
                        sock = await connect_one(target, source)
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                        break
                    except OSError as exc:
                        if exc.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES, errno.EINVAL):
                            raise PeerError(f"cannot share local port {source[1]}: {exc.strerror}") from exc
                    await asyncio.sleep(self.limits.punch_retry)
        except TimeoutError as exc:
            raise PeerError(f"no simultaneous open with {format_address(target)}") from exc
        await self._board.adopt(sock, initiator=initiator, expect=node, edge="punched", claim=claim)

    async def _enter(self, via: Peer, header: Mapping[str, Any]) -> socket.socket:
        """Join the room that `via` made; only that node's own host is dialled. Raises PeerError."""
        token = header.get("token")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise PeerError(f"expected the token of a relay room, found {str(token)[:40]!r}")
        host = via.address[0]
        listed = [a for a in parse_addresses_untrusted(header.get("addresses")) if a[0] == host]
        addresses = [via.address, *listed] if via.dialled else listed
        return await join_room(list(dict.fromkeys(addresses)), token, self._board.spawn, timeout=3.0)

    # -- the side that is asked

    async def _on_knocked(self, via: Peer, message: Message) -> None:
        require_admitted(self._admitted, via)
        knock = parse_knock_untrusted(message.header)
        if self._visits.take(time.monotonic()) and self._board.get(knock.node) is None:
            self._board.spawn(self._come(via, knock))

    async def _come(self, via: Peer, knock: Knock) -> None:
        """Dial the asker back and open a connection at once with it, whichever works."""
        await asyncio.sleep(knock.wait_ms / 1000)
        race = Race(self._board, knock.node)
        ways = [asyncio.ensure_future(self._open_at_once(via, knock.seen, initiator=False, node=knock.node))]
        if back := dial_back_addresses(knock):
            ways.append(asyncio.ensure_future(self._reverse(race, back)))
        for result in await asyncio.gather(*ways, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, PeerError):
                raise result

    async def _reverse(self, race: Race, addresses: Sequence[Address]) -> None:
        sock, _ = await connect(addresses, self.limits.dial_back)
        await self._board.adopt(sock, initiator=True, expect=race.node, edge="reverse", claim=race.claim("reverse"))

    async def _on_join(self, via: Peer, message: Message) -> None:
        require_admitted(self._admitted, via)
        node = check_id_untrusted(message.header.get("node"))
        if not self._relay:
            raise PeerError("this node takes no relayed connections (--no-relay)")
        if self._visits.take(time.monotonic()) and self._board.get(node) is None:
            self._board.spawn(self._come_through_relay(via, node, message.header))

    async def _come_through_relay(self, via: Peer, node: NodeId, header: Mapping[str, Any]) -> None:
        try:
            sock = await self._enter(via, header)
            await self._board.adopt(sock, initiator=False, expect=node, edge="relay")
        except PeerError as exc:
            log.debug("the relayed connection of node %s did not come about: %s", short_id(node), exc)


def dial_back_addresses(knock: Knock) -> list[Address]:
    """Which of the asker's addresses this node dials when it is asked to: none that could hurt a third party.

    Those on the host that the rendezvous saw the asker at ("0.0.0.0" and "::" stand for it); private ones too when
    both sides come from one host, that is, when they sit behind one NAT.
    """
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
