"""`swarm doctor --wan`: each step of the way from this machine to a swarm over the internet, and back."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress

from swarm.base.address import Address, format_address
from swarm.base.config import MemberConfig
from swarm.base.errors import SwarmError, UsageError
from swarm.base.nodeid import NodeId, short_id
from swarm.discovery.bootstrap import remembered
from swarm.discovery.obstacles import Tried, explain, own_networks, try_addresses
from swarm.discovery.state_dir import LAST_INVITE, requester_folder
from swarm.mesh.invite import parse_invite_untrusted
from swarm.net.channel.message import Message
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.traversal.messages import KNOWN, KNOWS, SOUGHT, Sought
from swarm.terminal.doctor import Finding, judge

FAR = {"IPv4": (socket.AF_INET, "192.0.2.1"), "IPv6": (socket.AF_INET6, "2001:db8::1")}
"""Addresses of nobody: to look up a route to one sends nothing."""
RELAY_WAIT_S = 3.0
WORDS = {
    "answers": "answers",
    "no name": "has a name that leads nowhere",
    "no way": "cannot be reached from this network",
    "refused": "is there, and nothing listens at the port",
    "silent": "answers nothing",
    "stranger": "answers, and is not this member",
    "version": "speaks another version",
    "cut": "ends the connection",
}


def has_route(family: str) -> bool:
    """Whether this machine knows a way to the internet in "IPv4" or "IPv6"; sends nothing."""
    kind, host = FAR[family]
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as sock:
            sock.connect((host, 9))
    except OSError:
        return False
    return True


async def look_at_way_out(config: MemberConfig) -> list[Finding]:
    """Routes, then every address of every member that is known. Raises SwarmError where no swarm is known."""
    routes = {family: has_route(family) for family in FAR}
    found = [
        judge(
            "routes",
            any(routes.values()),
            ", ".join(family for family, there in routes.items() if there) or "none",
            "this machine has no way to the internet: check its network",
            "wrong",
        )
    ]
    with requester_folder(config.state) as folder:
        identity = Identity.load_or_create(folder)
        before = remembered(folder, identity)
    members = known_members(config, before.peers if before is not None else ())
    return [*found, *members_found(await try_addresses(identity, members), own_networks())]


def known_members(
    config: MemberConfig, peers: Sequence[tuple[NodeId, Sequence[Address]]]
) -> list[tuple[NodeId, Sequence[Address]]]:
    """Those of the invite, else those that were met before. Raises UsageError."""
    last = config.state / LAST_INVITE
    text = config.invite or (last.read_text("utf-8", errors="replace") if last.is_file() else None)
    if text is not None:
        return list(parse_invite_untrusted(text).members)
    if not peers:
        raise UsageError("expected a swarm to look for with --wan, found none used before; give --swarm INVITE")
    return list(peers)


def members_found(tried: Sequence[Tried], networks: Sequence[str]) -> list[Finding]:
    """One finding for each address, and the cause where no member answers. Pure."""
    reached = {one.node for one in tried if one.outcome == "answers"}
    findings = []
    for one in tried:
        fine = one.outcome == "answers"
        standing = "ok" if fine else "warning"  # one address that answers is enough
        said = f" ({one.said})" if one.said and one.outcome in ("no name", "no way", "stranger", "version") else ""
        text = f"{format_address(one.address)} {WORDS[one.outcome]}{said}"
        findings.append(Finding(f"member {short_id(one.node)}", standing, text))
    obstacle = None if reached else explain(tried, networks)
    if obstacle is not None:
        findings.append(Finding("cause", "wrong", f"{obstacle.cause}: {obstacle.found}", obstacle.advice))
    return findings


async def look_at_relays(peers: Sequence[Peer], own: NodeId, dialable: bool | None) -> Finding:
    """Whether two nodes that nobody can dial could meet here: a member that relays is needed then."""

    async def offers(peer: Peer) -> bool:
        with suppress(SwarmError):
            answer = await peer.call(Message(KNOWS, SOUGHT.header(Sought(own))), timeout=RELAY_WAIT_S)
            return KNOWN.read_untrusted(answer.header).relay
        return False

    count = sum(await asyncio.gather(*map(offers, peers)))
    return judge(
        "relays",
        bool(count) or dialable is True,
        f"{count} of {len(peers)} members asked relay",
        "two nodes behind NATs that open no path need one: start a node that all can dial with swarm join --relay",
    )
