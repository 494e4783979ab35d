"""What may happen to a node's membership. `swarm.mesh.gossip` makes these of messages and time.

What neighbours bring was read and its signatures checked before it became one of these (`swarm.mesh.inbox`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from swarm.base.nodeid import NodeId
from swarm.mesh.latency import Coordinate
from swarm.mesh.membership import Revocation
from swarm.mesh.state import Blame, Hint, Suspicion
from swarm.mesh.table import Held


@dataclass(frozen=True, slots=True)
class Published:
    """This node made a new record of itself."""

    held: Held


@dataclass(frozen=True, slots=True)
class Linked:
    """A member said hello, or answered ours."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Unlinked:
    """A neighbour is gone; `polite`: it said goodbye, or we did."""

    peer: NodeId
    polite: bool


@dataclass(frozen=True, slots=True)
class DialFailed:
    """A node could not be reached at any of its addresses."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class HintsHeard:
    """A neighbour says what it has."""

    peer: NodeId
    hints: tuple[Hint, ...]
    blames: tuple[Blame, ...] = ()


@dataclass(frozen=True, slots=True)
class WantHeard:
    """A neighbour asks for records and suspicions by name."""

    peer: NodeId
    keys: tuple[int, ...]
    blames: tuple[Blame, ...] = ()


@dataclass(frozen=True, slots=True)
class DeltaHeard:
    """A neighbour brings records (signatures checked), suspicions (checked) and revocations (genuine, with room)."""

    peer: NodeId
    records: tuple[Held, ...]
    suspicions: tuple[Suspicion, ...] = ()
    revocations: tuple[Revocation, ...] = ()


@dataclass(frozen=True, slots=True)
class Accused:
    """This node signed a suspicion of its own."""

    suspicion: Suspicion


@dataclass(frozen=True, slots=True)
class DigestHeard:
    """A neighbour says how its table looks."""

    peer: NodeId
    digest: bytes


@dataclass(frozen=True, slots=True)
class Moved:
    """This node's coordinate changed."""

    coordinate: Coordinate


@dataclass(frozen=True, slots=True)
class Revoked:
    """This node revoked an invite."""

    revocation: Revocation


@dataclass(frozen=True, slots=True)
class Ended:
    """What admitted the nodes with these keys counts no more: their records and links go."""

    keys: frozenset[int]


@dataclass(frozen=True, slots=True)
class Aged:
    """Time passed: `revoked` is what counts of the revocations; those of invites that have expired are of no use."""

    revoked: Mapping[bytes, Revocation]


@dataclass(frozen=True, slots=True)
class Tick:
    """A round passed."""


Event = (
    Published
    | Linked
    | Unlinked
    | DialFailed
    | HintsHeard
    | WantHeard
    | DeltaHeard
    | Accused
    | DigestHeard
    | Moved
    | Revoked
    | Ended
    | Aged
    | Tick
)
