"""Dialling: several addresses of one node, raced (RFC 8305, "happy eyeballs")."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any

from swarm.base.address import Address, format_address
from swarm.base.errors import PeerError
from swarm.net.channel.sockets import reason_of, share_port, tune

HEAD_START_SECONDS = 0.25
"""How long an address is tried alone before the next one joins; a failure lets the next one begin at once."""
MAX_TARGETS = 16


async def connect(addresses: Sequence[Address], timeout: float) -> tuple[socket.socket, Address]:
    """Connect to the first address that answers, IPv6 and IPv4 in turn. Raises PeerError; the caller owns the socket.

    Names are looked up off the event loop and join the race when they are known.
    """
    if not addresses:
        raise PeerError("expected at least one address to dial, found none")
    race = _Race([a for a in addresses if _is_literal(a)], [a for a in addresses if not _is_literal(a)])
    try:
        async with asyncio.timeout(timeout):
            winner = await race.run()
    except TimeoutError:
        winner = None
        race.failures.append(f"no answer within {timeout:g} s")
    finally:
        await race.end()
    if winner is None:
        raise PeerError(f"no answer from {', '.join(map(format_address, addresses))}: {'; '.join(race.failures)}")
    return winner


class _Race:
    def __init__(self, literals: Iterable[Address], names: Iterable[Address]) -> None:
        self.failures: list[str] = []
        self._queue = deque(in_turn(literals))
        self._lookups = {asyncio.create_task(_look_up(name)): name for name in names}
        self._dials: dict[asyncio.Task[socket.socket], Address] = {}
        self._started = 0
        self._winner: socket.socket | None = None

    async def run(self) -> tuple[socket.socket, Address] | None:
        """The first connection, or None when every address has failed."""
        while True:
            if self._queue and self._started < MAX_TARGETS:
                address = self._queue.popleft()
                self._dials[asyncio.create_task(connect_one(address))] = address
                self._started += 1
            tasks: set[asyncio.Future[Any]] = {*self._lookups, *self._dials}
            if not tasks:
                return None
            wait = HEAD_START_SECONDS if self._queue else None
            done, _ = await asyncio.wait(tasks, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            for lookup in [task for task in self._lookups if task in done]:
                self._looked_up(lookup)
            for dial in [task for task in self._dials if task in done]:
                address = self._dials.pop(dial)
                try:
                    self._winner = dial.result()
                    return self._winner, address
                except (OSError, UnicodeError) as exc:
                    self.failures.append(f"{format_address(address)} {reason_of(exc)}")

    def _looked_up(self, lookup: asyncio.Task[list[Address]]) -> None:
        name = self._lookups.pop(lookup)
        try:
            self._queue.extend(in_turn(lookup.result()))
        except (OSError, UnicodeError) as exc:
            self.failures.append(f"{name[0]}: {reason_of(exc)}")

    async def end(self) -> None:
        """Stop what still runs and close what came too late."""
        rest = [*self._lookups, *self._dials]
        for task in rest:
            task.cancel()
        for late in await asyncio.gather(*rest, return_exceptions=True):
            if isinstance(late, socket.socket):
                late.close()


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
