"""Every bound of the network layer, in one record."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class Limits:
    """Bounds of one node; each is enforced before memory is taken."""

    handshake_seconds: float = 5.0
    """From accepting a connection to an authenticated peer."""
    message_bytes: int = 64 * MIB
    """One message, header and body together. Told to the peer in the handshake."""
    header_bytes: int = 256 * KIB
    """The msgpack header of one message."""
    header_depth: int = 8
    header_items: int = 65536
    """Values in one header, containers and keys included."""
    queue_bytes: int = 32 * MIB
    """Waiting to be sent to one peer; `send` waits above it."""
    inbox_bytes: int = 64 * MIB
    """Received from one peer and not yet handled; reading stops above it."""
    calls: int = 1024
    """Calls of one peer that wait for an answer, each direction."""
    peers: int = 512
    """Authenticated peers."""
    pending: int = 1024
    """Inbound connections that have not authenticated yet; the oldest is closed when one more arrives."""
    pending_per_host: int = 256
    heartbeat_seconds: float = 1.0
    """Something is sent at least this often."""
    silence_seconds: float = 4.0
    """A peer from which nothing came for this long is closed."""
    idle_http_header_bytes: int = 16 * KIB
    """The head of an HTTP request on the node's own port."""

    @property
    def partial_bytes(self) -> int:
        """Announced sizes of all messages of one peer that have begun and not ended (part of the protocol)."""
        return 2 * self.message_bytes
