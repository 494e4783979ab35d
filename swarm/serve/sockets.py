"""The socket of a gateway, and the words when it cannot be had. Light to import: asked before anything is loaded."""

from __future__ import annotations

import socket

from swarm.base.errors import UsageError


def bound_socket(host: str, port: int) -> socket.socket:
    """A bound socket on one address; `::` is every address of both families. Raises UsageError."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
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
