"""What nodes say to each other in order to reach a third: to a rendezvous, to whom is knocked at, to a relay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from swarm.base.address import AddressText
from swarm.base.bounds import AtMost, Between, Key, Spelled, by_name
from swarm.base.codec import Codec
from swarm.base.nodeid import NodeId

KNOWS, KNOCK, KNOCKED, CHECK = "reach.knows", "reach.knock", "reach.knocked", "reach.check"
ASK, JOIN = "relay.ask", "relay.join"
MAX_ADDRESSES = 8
MAX_WAIT_MS = 2000
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,64}")


def _token(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"the token of a relay's room, found {text[:40]!r}")
    return text


Addresses: TypeAlias = Annotated[tuple[AddressText, ...], AtMost(MAX_ADDRESSES)]
RoomToken: TypeAlias = Annotated[str, Spelled(_token, str, Annotated[str, AtMost(64)])]


@by_name()
@dataclass(frozen=True)
class Sought:
    """KNOWS and ASK: the node that the caller wants to reach."""

    node: NodeId


@by_name()
@dataclass(frozen=True)
class KnowsAnswer:
    """The answer to KNOWS: whether that node is a peer of this one, and whether this one relays."""

    knows: bool
    relay: bool


@by_name()
@dataclass(frozen=True)
class KnockRequest:
    """KNOCK: whom the caller wants to reach, and where it listens itself."""

    node: NodeId
    addresses: Addresses


@by_name()
@dataclass(frozen=True)
class Knock:
    """What one side learns of the other from the rendezvous: KNOCKED, and the answer to KNOCK.

    `node` the other side; `seen` where the rendezvous sees it, None where it is seen through HTTP; `self_seen` where it
    sees this side; `addresses` where the other side listens, as it says; `wait_ms` when to begin, counted from the
    arrival of this message.
    """

    node: NodeId
    seen: AddressText | None
    self_seen: Annotated[AddressText, Key("self")]
    addresses: Addresses
    wait_ms: Annotated[float, Between(0, MAX_WAIT_MS)]

    def header(self) -> dict[str, object]:
        """As a message carries it."""
        return _KNOCK.header(self)


@by_name()
@dataclass(frozen=True)
class PortRequest:
    """CHECK: can this port of the caller's be dialled from where the other side is?"""

    port: Annotated[int, Between(1, 65535)]


@by_name()
@dataclass(frozen=True)
class PortAnswer:
    """Where the caller was seen, and whether it answered at its port there."""

    seen: AddressText
    open: bool


@by_name()
@dataclass(frozen=True)
class RelayRoom:
    """The answer to ASK: what opens a room of the relay, and where it listens."""

    token: RoomToken
    addresses: Addresses


@by_name()
@dataclass(frozen=True)
class RelayCall:
    """JOIN: `node` waits in a room of the relay."""

    node: NodeId
    token: RoomToken
    addresses: Addresses

    @property
    def room(self) -> RelayRoom:
        return RelayRoom(self.token, self.addresses)


SOUGHT, KNOWN = Codec(Sought, "node sought"), Codec(KnowsAnswer, KNOWS)
KNOCK_REQUEST, _KNOCK = Codec(KnockRequest, KNOCK), Codec(Knock, "knock")
PORT_REQUEST, PORT_ANSWER = Codec(PortRequest, CHECK), Codec(PortAnswer, CHECK)
RELAY_ROOM, RELAY_CALL = Codec(RelayRoom, ASK), Codec(RelayCall, JOIN)


def parse_knock_untrusted(header: Mapping[str, object]) -> Knock:
    """Read `Knock.header`. Raises PeerError."""
    return _KNOCK.read_untrusted(header)
