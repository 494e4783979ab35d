"""TCP sockets as the swarm wants them: no Nagle, no BBR, little queued in the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys

from swarm.base.address import Address, format_address
from swarm.base.errors import PeerError, UsageError

CONGESTION = ("cubic", "reno")
"""Tried in this order. BBR paces: a 16 KB request over 50 ms took 90 ms with it and 51 ms with reno."""
UNSENT_BYTES = 32 * 1024
"""What the kernel may hold unsent (TCP_NOTSENT_LOWAT): a small frame cannot pass what the kernel already has."""
BACKLOG = 512
PORT_TRIES = 8
"""A free port of one family may be taken in the other."""


def tune(sock: socket.socket) -> None:
    """Set the options that must be set before connect or listen. Missing ones are skipped, never an error."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    _try(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _try(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            _try(sock, socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        _try(sock, socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    if sys.platform == "linux":
        for algorithm in CONGESTION:
            if _try(sock, socket.IPPROTO_TCP, socket.TCP_CONGESTION, algorithm.encode()):
                break


def _try(sock: socket.socket, level: int, option: int, value: int | bytes) -> bool:
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Sockets on one address; "::" is every address of both families, at one port. Raises UsageError.

    Two sockets rather than one for both: connections over IPv4 keep addresses of their own family then, which hole
    punching binds to. A machine without one of the families listens on the other alone.
    """
    if host != "::":
        return [listening_socket(host, port)]
    if not has_ipv6():
        return [listening_socket("0.0.0.0", port)]
    for again in range(PORT_TRIES):
        four = listening_socket("0.0.0.0", port)
        try:
            return [four, listening_socket("::", four.getsockname()[1], only_ipv6=True)]
        except UsageError:
            four.close()
            if port or again == PORT_TRIES - 1:
                raise
    raise AssertionError("unreachable")


def has_ipv6() -> bool:
    """Whether this machine can listen on IPv6 at all."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::", 0))
    except OSError:
        return False
    return True


def listening_socket(host: str, port: int, only_ipv6: bool = False) -> socket.socket:
    """A tuned, listening, non-blocking socket. Raises UsageError when the address cannot be had.

    Other sockets of this process may later share the port for hole punching (SO_REUSEPORT is set after bind, so
    that a second node on the same port is still refused).
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    where = format_address((host or "0.0.0.0", port))
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", port, family, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
        sock = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, OverflowError, UnicodeError) as exc:
        raise UsageError(f"cannot listen on {where}: {exc}; give an address of this machine with --listen") from exc
    try:
        sock.setblocking(False)
        tune(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
        sock.bind(found[0][4])
        if hasattr(socket, "SO_REUSEPORT"):
            _try(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise UsageError(
            f"cannot listen on {where}: {exc.strerror or exc}; choose another port with --listen HOST:PORT"
        ) from exc
    return sock


def reason_of(error: Exception) -> str:
    """The system's own words: asyncio replaces them with the name of its call."""
    number = error.errno if isinstance(error, OSError) and not isinstance(error, socket.gaierror) else None
    return os.strerror(number).lower() if number else str(error)


def share_port(sock: socket.socket) -> None:
    """Let later sockets of this process use the same local port: a NAT's mapping of it then serves both."""
    _try(sock, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
        _try(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


async def read_exactly(sock: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes of a non-blocking socket, never one more. Raises PeerError at its end."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < count:
        try:
            piece = await loop.sock_recv(sock, count - len(data))
        except OSError as exc:
            raise PeerError(f"the connection broke: {reason_of(exc)}") from exc
        if not piece:
            raise PeerError("the other side closed the connection before it was set up")
        data += piece
    return bytes(data)


async def write_all(sock: socket.socket, data: bytes) -> None:
    """Write all of `data`. Raises PeerError when the connection is gone."""
    try:
        await asyncio.get_running_loop().sock_sendall(sock, data)
    except OSError as exc:
        raise PeerError(f"the connection broke: {reason_of(exc)}") from exc


def remote_address(sock: socket.socket) -> Address:
    """Host and port of the other end; ("local", 0) for a socket that has none."""
    with contextlib.suppress(OSError):
        name = sock.getpeername()
        if isinstance(name, tuple) and len(name) >= 2:
            host = str(name[0])
            return (host.removeprefix("::ffff:") if "." in host else host), int(name[1])
    return "local", 0
