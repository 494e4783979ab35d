"""What is checked before anything is loaded: a taken port or state folder must not be told of after a minute."""

from __future__ import annotations

from pathlib import Path


def check_state(folder: Path) -> None:
    """Raises StateInUse when another process holds the state folder, UsageError when it cannot be written."""
    from swarm.discovery.state_dir import locked

    with locked(folder):
        pass


def check_node_port(listen: tuple[str, int]) -> None:
    """Raises UsageError when a node cannot listen there; port 0 always can."""
    from swarm.net.channel.sockets import listening_sockets

    for sock in listening_sockets(*listen):
        sock.close()


def check_http_port(host: str, port: int) -> None:
    """Raises UsageError when a gateway cannot listen there."""
    from swarm.serve.sockets import bound_sockets

    for sock in bound_sockets(host, port):
        sock.close()
