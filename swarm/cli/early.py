"""What is checked before anything is loaded: a taken port or state folder must not be told of after a minute."""

from __future__ import annotations

import socket
from pathlib import Path

from swarm.base.errors import UsageError


def check_state(folder: Path) -> None:
    """Raises StateInUse when another process holds the state folder, UsageError when it cannot be written."""
    from swarm.discovery.state_dir import locked

    with locked(folder):
        pass


def check_node_port(listen: tuple[str, int]) -> None:
    """Raises UsageError when a node cannot listen there; port 0 always can."""
    from swarm.net.channel.sockets import listening_socket

    listening_socket(*listen).close()


def check_http_port(host: str, port: int) -> None:
    """Raises UsageError when a gateway cannot listen there; names are left to the gateway, which may have several."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"cannot listen on {host} port {port}: {error.strerror or error}; choose another with --host and --port"
            ) from error
