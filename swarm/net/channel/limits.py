"""Every bound of the network layer, in one record."""

from __future__ import annotations

from dataclasses import dataclass, replace

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class ChannelLimits:
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
    """Peers that are no strangers."""
    stranger_bytes: int = 16 * KIB
    """Of a stranger, who proved a key and has not said hello: one message, what waits to be handled, what waits to be
    sent. With the buffers of its connection it stays under 64 KiB."""
    stranger_seconds: float = 10.0
    """How long a stranger may stay one; it goes on while it takes what it was allowed to ask for."""
    strangers: int = 256
    """Strangers at once; the oldest is closed when one more arrives."""
    strangers_per_host: int = 64
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
    def for_strangers(self) -> ChannelLimits:
        """The bounds of a connection whose other side has not been admitted."""
        most = self.stranger_bytes
        return replace(
            self,
            message_bytes=min(most, self.message_bytes),
            header_bytes=min(most, self.header_bytes),
            header_items=min(1024, self.header_items),
            queue_bytes=min(most, self.queue_bytes),
            inbox_bytes=min(most, self.inbox_bytes),
            calls=min(4, self.calls),
        )

    @property
    def partial_bytes(self) -> int:
        """Announced sizes of all messages of one peer that have begun and not ended (part of the protocol)."""
        return 2 * self.message_bytes


@dataclass(frozen=True)
class ReachLimits:
    """Head starts and bounds, in seconds where nothing else is said."""

    knock_after: float = 0.15
    """Reverse dial and punch begin so long after the direct dial."""
    relay_after: float = 1.2
    """The relay joins the race so long after the direct dial; a direct path that can be had is had by then."""
    punch: float = 2.5
    """How long both sides try to open a connection at once."""
    dial_back: float = 2.5
    """How long the target dials the asker, and the asker waits for it."""
    punch_retry: float = 0.02
    """Pause after a refused attempt: the other NAT answered because its own side had not begun."""
    introduce: float = 3.0
    """For connecting to nodes that may know the one that is wanted."""
    rendezvous: int = 8
    """Peers that are asked whether they know the node."""
    visits_per_minute: int = 60
    """Knocks and relay calls that this node follows."""
    upgrade_after: tuple[float, ...] = (10.0, 30.0, 120.0, 600.0, 1800.0)
    """Pauses before each new search for a direct path to a node that was reached through a relay; then no more."""
    upgrade_busy: float = 5.0
    """A search that would fall into a run looks again so long after."""
