"""Which of its addresses a node may tell of: members dial it back, and what none of them can dial is not told.

A wrong address in a record costs every member that tries it. So a node that listens on all interfaces asks a few of its
neighbours where they see it and whether its port answers there. A node whose port nobody can dial tells of no address:
others then reach it by having a common neighbour ask it to dial, by hole punching, or by a relay.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarm.base.address import Address
from swarm.base.errors import SwarmError
from swarm.base.events import Notice, Report
from swarm.mesh.gossip import Gossip
from swarm.mesh.record import MAX_ADDRESSES
from swarm.net.switchboard import Switchboard
from swarm.net.traversal.rendezvous import check_port

ASKED = 3
CLOSED_TIMES = 2
"""So many answers must say that nothing answers before that is believed: a busy moment is no firewall."""
AGAIN_S = 10.0
EVERY_S = 600.0


@dataclass(frozen=True)
class DialVerdict:
    """What one member found: it sees this node at `host`, and the port can be dialled there or not."""

    host: str
    open: bool


def told(own: Sequence[Address], port: int, verdicts: Sequence[DialVerdict]) -> tuple[Address, ...] | None:
    """The addresses to tell of, best first; () for none, None while too little is known.

    `own`: what this machine believes of itself; addresses of it that nobody judged stay only beside one that works.
    """
    opened = list(dict.fromkeys((verdict.host, port) for verdict in verdicts if verdict.open))
    closed = [verdict for verdict in verdicts if not verdict.open]
    if opened:
        shut = {verdict.host for verdict in closed} - {host for host, _ in opened}
        rest = [address for address in own if address not in opened and address[0] not in shut]
        return (*opened, *rest)[:MAX_ADDRESSES]
    if len(closed) < CLOSED_TIMES:
        return None
    # Nobody asked over the other family: a router that lets no IPv4 in has nothing to do with IPv6.
    asked = {":" in verdict.host for verdict in closed}
    return tuple(a for a in own if (":" in a[0]) not in asked and _is_global(a[0]))[:MAX_ADDRESSES]


def _is_global(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def undialled(port: int, relayed: bool) -> str:
    """What to say where no member can dial this machine. `relayed`: whether a member offers to relay."""
    ways = f"forward the port and give --advertise HOST:{port}, or --map-port"
    if relayed:
        return (
            f"no member can dial port {port} of this machine: they reach it through each other or a relay; {ways}, "
            "for shorter ways"
        )
    return (
        f"no member can dial port {port} of this machine, and none relays: another such machine may find no way to it; "
        f"{ways}, or start a node that all can dial with --relay (cause: nat)"
    )


async def judge(gossip: Gossip, board: Switchboard, port: int, count: int = ASKED) -> list[DialVerdict]:
    """Ask up to `count` neighbours. Those that do not answer, or are met over a relay, say nothing."""
    verdicts = []
    for view in [view for view in gossip.members() if view.linked][:count]:
        peer = board.get(view.record.node)
        if peer is None or peer.edge == "relay":
            continue
        try:
            (host, _), is_open = await check_port(peer, port)
        except SwarmError:
            continue
        verdicts.append(DialVerdict(host, is_open))
    return verdicts


async def keep_judging(
    gossip: Gossip, board: Switchboard, own: Sequence[Address], tell: Callable[[tuple[Address, ...]], None],
    report: Report, again_s: float = AGAIN_S,
) -> None:  # fmt: skip
    """For ever; a task of a node: once there are neighbours, then every EVERY_S, sooner while nothing is settled."""
    port, found, before = own[0][1], [], tuple(own)
    while True:
        while not any(view.linked for view in gossip.members()):
            await gossip.wait_change()
        found += await judge(gossip, board, port)
        addresses = told(own, port, found)
        if addresses is None:
            await asyncio.sleep(again_s)
            continue
        if addresses != before:
            tell(addresses)
        if not addresses and before:
            report(
                Notice(
                    undialled(port, any(view.record.relay for view in gossip.members() if view.standing == "up")),
                    "warning",
                )
            )
        before, found = addresses, []
        await asyncio.sleep(EVERY_S)
