"""Dialling: several addresses of one node, raced (RFC 8305, "happy eyeballs")."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import chain, zip_longest

from swarm.base.address import Address, format_address
from swarm.base.errors import PeerError
from swarm.net.channel.sockets import reason_of, share_port, tune
from swarm.net.staggered import staggered

HEAD_START_SECONDS = 0.25
"""How long an address is tried alone before the next one joins; a failure lets the next one begin at once."""
MAX_TARGETS = 16


async def connect(addresses: Sequence[Address], timeout: float) -> tuple[socket.socket, Address]:
    """Connect to the first address that answers, IPv6 and IPv4 in turn. Raises PeerError; the caller owns the socket.

    Names are looked up off the event loop and join the race when they are known.
    """
    if not addresses:
        raise PeerError("expected at least one address to dial, found none")
    literals = [address for address in addresses if _is_literal(address)]
    names = [address for address in addresses if not _is_literal(address)]
    reasons: list[str] = []
    try:
        async with asyncio.timeout(timeout):
            return await staggered(
                [partial(_try, address) for address in in_turn(literals)],
                HEAD_START_SECONDS,
                lambda late: late[0].close(),
                later=[_tries(name) for name in names],
                most=MAX_TARGETS,
                reasons=reasons,
            )
    except TimeoutError:
        reasons.append(f"no answer within {timeout:g} s")
    except PeerError:
        pass  # the reasons are told below
    raise PeerError(f"no answer from {', '.join(map(format_address, addresses))}: {'; '.join(reasons)}")


async def _try(address: Address) -> tuple[socket.socket, Address]:
    try:
        return await connect_one(address), address
    except (OSError, UnicodeError) as exc:
        raise PeerError(f"{format_address(address)} {reason_of(exc)}") from exc


async def _tries(name: Address) -> list[Callable[[], Awaitable[tuple[socket.socket, Address]]]]:
    """The addresses of a name, each to be tried."""
    try:
        found = await _look_up(name)
    except (OSError, UnicodeError) as exc:
        raise PeerError(f"{name[0]}: {reason_of(exc)}") from exc
    return [partial(_try, address) for address in in_turn(found)]


def in_turn(addresses: Iterable[Address]) -> list[Address]:
    """IPv6 and IPv4 in turn, IPv6 first, each kind in its order, nothing twice."""
    unique = list(dict.fromkeys(addresses))
    six, four = [a for a in unique if ":" in a[0]], [a for a in unique if ":" not in a[0]]
    return [a for a in chain.from_iterable(zip_longest(six, four)) if a is not None]


def _is_literal(address: Address) -> bool:
    try:
        ipaddress.ip_address(address[0])
    except ValueError:
        return False
    return True


async def _look_up(name: Address) -> list[Address]:
    found = await asyncio.get_running_loop().getaddrinfo(*name, type=socket.SOCK_STREAM)
    return [(str(where[0]), int(where[1])) for *_, where in found]


async def connect_one(address: Address, source: Address | None = None) -> socket.socket:
    """One tuned connection to an IP address and port. Raises OSError.

    With `source` the socket shares that local address and port with others of this process.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        tune(sock)
        share_port(sock)
        if source is not None:
            sock.bind(source)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock
