"""How fast bytes go to peers and come from them: measured when a node begins to serve, told in its record.

Up is what the peer's kernel acknowledged of a burst of padding; down is the same, measured by the peer towards us
because we asked. Each side sends at most one burst for a peer per minute.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from swarm.base.bounds import Between, by_name
from swarm.base.codec import Codec
from swarm.base.errors import BusyError, PeerError
from swarm.mesh.gossip import Gossip
from swarm.net.channel.message import Message
from swarm.net.members import Members
from swarm.net.peer import Handler, Peer
from swarm.net.switchboard import Switchboard

RATE = "rate.measure"
BURST_BYTES = 1 << 20
PEERS = 2
ONCE_IN_S = 60.0
TIMEOUT_S = 20.0
LARGEST_KBPS = 2**31


@dataclass(frozen=True)
class Rates:
    """Median over the peers asked, kbit/s; 0 where nothing could be measured."""

    up_kbps: int
    down_kbps: int


@by_name()
@dataclass(frozen=True)
class RateAnswer:
    """How fast the burst went, kbit/s; 0: not measured."""

    kbps: Annotated[int, Between(0, LARGEST_KBPS)]


RATE_ANSWER = Codec(RateAnswer, "measured rate")


@dataclass
class RateServer:
    """Answers `rate.measure`: sends the caller a burst and says how fast it went."""

    members: Members
    _last: dict[bytes, float] = field(default_factory=dict)

    def handlers(self) -> Mapping[str, Handler]:
        """What the node's switchboard calls."""
        return {RATE: self._on_measure}

    async def _on_measure(self, peer: Peer, message: Message) -> Message:
        now = time.monotonic()
        self._last = {node: at for node, at in self._last.items() if now - at < ONCE_IN_S}
        if not self.members.admitted(peer.id):
            raise PeerError("expected a member of the swarm to ask for a measurement, found a stranger")
        if peer.id in self._last:
            raise BusyError("measured a moment ago; ask again in a minute")
        self._last[peer.id] = now
        rate = await peer.measure_rate(BURST_BYTES)
        return Message(RATE, RATE_ANSWER.header(RateAnswer(_kbps(rate))))


async def measure_rates(gossip: Gossip, board: Switchboard, peers: int = PEERS) -> Rates:
    """Both directions to the nearest `peers` neighbours, one after the other."""
    near = [v for v in gossip.members() if v.linked and v.record.node != board.id]
    ups: list[int] = []
    downs: list[int] = []
    for view in sorted(near, key=lambda v: v.rtt_ms or 0.0)[:peers]:
        peer = board.get(view.record.node)
        if peer is None:
            continue
        try:
            async with asyncio.timeout(TIMEOUT_S):
                ups.append(_kbps(await peer.measure_rate(BURST_BYTES)))
                answer = await peer.call(Message(RATE), TIMEOUT_S)
            downs.append(RATE_ANSWER.read_untrusted(answer.header).kbps)
        except (PeerError, BusyError, TimeoutError):
            continue
    return Rates(_median(ups), _median(downs))


def _kbps(bytes_per_second: float | None) -> int:
    return min(LARGEST_KBPS, int((bytes_per_second or 0.0) * 8 / 1000))


def _median(values: list[int]) -> int:
    known = sorted(value for value in values if value)
    return known[len(known) // 2] if known else 0
