"""The socket of a gateway, and the words when it cannot be had. Light to import: asked before anything is loaded."""

from __future__ import annotations

import socket

from swarm.base.errors import UsageError

ANY, LOOPBACK = "::", "localhost"
"""Hosts that stand for both families: every address, and this machine alone."""
PORT_TRIES = 8


def bound_sockets(host: str, port: int) -> list[socket.socket]:
    """Bound sockets: for ANY and LOOPBACK one of each family that this machine has, at one port. Raises UsageError."""
    pairs = {ANY: ("0.0.0.0", "::"), LOOPBACK: ("127.0.0.1", "::1")}
    if host not in pairs:
        return [_bound(_looked_up(host, port), port)]
    four, six = pairs[host]
    for _ in range(PORT_TRIES):
        first = _bound(four, port)
        try:
            return [first, _bound(six, first.getsockname()[1])] if _has(six) else [first]
        except UsageError:
            first.close()
            if port:
                raise
    raise cannot_listen(host, port, OSError("no port is free in both families"))


def _looked_up(host: str, port: int) -> str:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise cannot_listen(host, port, error) from error
    return str(found[0][4][0])


def _has(host: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind((host, 0))
    except OSError:
        return False
    return True


def _bound(host: str, port: int) -> socket.socket:
    six = ":" in host
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise cannot_listen(host, port, error) from error
    return sock


def cannot_listen(host: str, port: int, error: OSError) -> UsageError:
    """What a user is told of a gateway's address that cannot be had."""
    return UsageError(
        f"cannot listen on {host} port {port}: {error.strerror or error}; choose another with --host and --port"
    )
