"""Why a swarm was not reached: what its members' addresses answer, one by one, and which of the usual causes that is.

`try_addresses` asks, `explain` decides. What a member itself says when it refuses (an invite that has expired, was
revoked or used, another model) needs no guess and is told in its words.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import psutil

from swarm.base.address import Address, format_address
from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId, Signer, short_id
from swarm.net.channel.handshake import ChannelKeys, StrangerError, VersionError
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.opening import open_channel
from swarm.net.channel.sockets import reason_of
from swarm.net.dial import connect_one
from swarm.net.switchboard import FULL

log = logging.getLogger(__name__)

TRY_S = 3.0
MOST = 12
Outcome = Literal["answers", "no name", "no way", "refused", "silent", "stranger", "version", "cut"]
Cause = Literal["dns", "version", "advertise", "firewall", "down", "network", "cut", "full"]
_NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETDOWN}


@dataclass(frozen=True)
class Tried:
    """What one address of one member answered.

    answers   the member, as it should
    no name   its name is not known to DNS
    no way    this machine has no way to that network
    refused   the machine is there, and nothing listens at the port
    silent    nothing came back
    stranger  something else than this member
    version   a node that speaks another version
    cut       a connection that ended before the handshake did
    """

    node: NodeId
    address: Address
    outcome: Outcome
    said: str = ""


@dataclass(frozen=True)
class Obstacle:
    """A cause, what was found, and what to do about it."""

    cause: Cause
    found: str
    advice: str

    def __str__(self) -> str:
        return f"{self.found}: {self.advice}"


class _EnoughError(PeerError):
    """The other side has proved who it is; no more is wanted."""


async def try_addresses(identity: Signer, members: Sequence[tuple[NodeId, Sequence[Address]]]) -> list[Tried]:
    """Ask each address, all at once, for TRY_S at most, and as long for its name; nothing is joined."""
    wanted = [(node, address) for node, addresses in members for address in addresses][:MOST]
    keys = ChannelKeys.make(identity, ChannelLimits().message_bytes)
    return list(await asyncio.gather(*(_try(keys, node, address) for node, address in wanted)))


async def _try(keys: ChannelKeys, node: NodeId, address: Address) -> Tried:
    try:
        async with asyncio.timeout(TRY_S):
            literal = await _resolved(address)
    except TimeoutError:  # a resolver that is not reached is silent for longer than a host would be
        return Tried(node, address, "no name", f"no answer from DNS within {TRY_S:g} s")
    except (OSError, UnicodeError) as error:
        return Tried(node, address, "no name", reason_of(error))
    try:
        async with asyncio.timeout(TRY_S):
            return await _meet(keys, node, address, literal)
    except TimeoutError:
        return Tried(node, address, "silent")
    except OSError as error:
        outcome: Outcome = "no way" if error.errno in _NO_WAY else "refused"
        return Tried(node, address, outcome, reason_of(error))


async def _resolved(address: Address) -> Address:
    """Where a name leads. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(*address, type=socket.SOCK_STREAM)
    return str(found[0][4][0]), address[1]


async def _meet(keys: ChannelKeys, node: NodeId, address: Address, literal: Address) -> Tried:
    """Connect and let the other side prove who it is. Raises OSError, TimeoutError."""
    sock = await connect_one(literal)

    def enough() -> None:
        raise _EnoughError("")

    try:
        await open_channel(sock, keys, ChannelLimits(), initiator=True, expect=node, claim=enough)
    except _EnoughError:
        return Tried(node, address, "answers")
    except VersionError as error:
        return Tried(node, address, "version", str(error))
    except StrangerError as error:
        return Tried(node, address, "stranger", str(error))
    except PeerError as error:
        return Tried(node, address, "cut", str(error))
    return Tried(node, address, "answers")


def explain(tried: Sequence[Tried], networks: Sequence[str] = ()) -> Obstacle | None:
    """The likeliest cause, and what to do; None where a member answers as it should, or nothing was tried.

    What tells most is looked for first: another version is nobody's firewall. `networks`: those that this machine is
    in, such as "192.168.1.0/24".
    """
    if not tried or any(one.outcome == "answers" for one in tried):
        return None
    for outcome, say in _SAID:
        if found := [one for one in tried if one.outcome == outcome]:
            return say(found)
    inner = [one for one in tried if _only_there(one.address[0], networks)]
    if len(inner) == len(tried):
        return Obstacle(
            "advertise",
            f"the invite names addresses of another local network alone ({_names(inner)})",
            "its node must be told where it is reached from outside: swarm join --advertise HOST:PORT there (or "
            "--map-port), then make a new invite",
        )
    outer = [one for one in tried if one not in inner]
    return next(say(found) for outcome, say in _PLACED if (found := [one for one in outer if one.outcome == outcome]))


def _version(found: Sequence[Tried]) -> Obstacle:
    return Obstacle("version", found[0].said, "both must run the same: pip install --upgrade wanswarm")


def _stranger(found: Sequence[Tried]) -> Obstacle:
    return Obstacle(
        "advertise",
        f"at {_names(found)} somebody else answers ({found[0].said})",
        f"the address of node {short_id(found[0].node)} has changed or was told wrongly; make a new invite there, with "
        "the right --advertise",
    )


def _no_name(found: Sequence[Tried]) -> Obstacle:
    return Obstacle(
        "dns",
        f"the name {found[0].address[0]} leads nowhere ({found[0].said})",
        "check the name and this machine's DNS (/etc/resolv.conf), or ask for an invite with a number: --address",
    )


def _cut(found: Sequence[Tried]) -> Obstacle:
    return Obstacle(
        "cut",
        f"{_names(found)} lets connections in and ends them ({found[0].said})",
        "a firewall or proxy on the way looks into them; --http-proxy goes through one that lets HTTP pass",
    )


def _refused(found: Sequence[Tried]) -> Obstacle:
    return Obstacle(
        "down",
        f"{_names(found)} is there and nothing listens at that port ({found[0].said})",
        "the node is not running, or its router forwards the port elsewhere; start it, then make a new invite",
    )


def _silent(found: Sequence[Tried]) -> Obstacle:
    ports = ", ".join(sorted({str(one.address[1]) for one in found}))
    return Obstacle(
        "firewall",
        f"{_names(found)} answers nothing, not even that it is closed",
        f"a firewall drops what comes to TCP port {ports}: open it there, and for outgoing connections here; where the "
        "node stands behind a router, forward the port or give --map-port; where neither side can be opened, both need "
        "a member that they can dial, with --relay",
    )


def _no_way(found: Sequence[Tried]) -> Obstacle:
    kinds = {"IPv6" if ":" in one.address[0] else "IPv4" for one in found}
    return Obstacle(
        "network",
        f"this machine has no way to {_names(found)} ({found[0].said})",
        f"it needs {' and '.join(sorted(kinds))}: check its network, or ask for an invite with another --address",
    )


_SAID = (("version", _version), ("stranger", _stranger), ("no name", _no_name), ("cut", _cut))
_PLACED = (("refused", _refused), ("silent", _silent), ("no way", _no_way))


def _names(found: Sequence[Tried]) -> str:
    shown = [format_address(one.address) for one in found[:3]]
    return ", ".join(shown) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _only_there(host: str, networks: Sequence[str]) -> bool:
    """Whether an address means something in a local network that this machine is not in, or this machine itself."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if address.is_loopback:
        return True
    if not (address.is_private or address.is_link_local) or address in _DOCUMENTED:
        return False
    return not any(
        network.version == address.version and address in network
        for network in (ipaddress.ip_network(text, strict=False) for text in networks)
    )


class _Documented:
    """Networks that stand for public ones in examples and labs (RFC 5737, 3849), which `ipaddress` calls private."""

    _networks = tuple(
        ipaddress.ip_network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
    )

    def __contains__(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(network.version == address.version and address in network for network in self._networks)


_DOCUMENTED = _Documented()


def own_networks() -> tuple[str, ...]:
    """The networks of this machine's interfaces."""
    found = []
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6) and entry.netmask:
                host = entry.address.partition("%")[0]
                mask = entry.netmask if entry.family == socket.AF_INET else _prefix(entry.netmask)
                found.append(f"{host}/{mask}")
    return tuple(found)


def _prefix(mask: str) -> int:
    return int(ipaddress.IPv6Address(mask)).bit_count()


_FULL_HOUSE = Obstacle(
    "full",
    "the members that the invite names have as many connections as they take",
    "try again later, or ask another member for an invite: swarm invite",
)


async def why_unreached(
    identity: Signer, members: Sequence[tuple[NodeId, Sequence[Address]]], error: PeerError
) -> PeerError:
    """The cause in place of the error, which names every address, where one is found."""
    if FULL in str(error):
        obstacle: Obstacle | None = _FULL_HOUSE
    else:
        obstacle = explain(await try_addresses(identity, members), own_networks())
    if obstacle is None:
        return error
    log.info("%s", error)
    said = "no member of the swarm could be reached; address by address: swarm doctor --wan; or ask for a newer invite"
    return PeerError(f"{obstacle} (cause: {obstacle.cause}; {said})")
