"""What a node's membership wants done; `swarm.mesh.gossip` does it: messages, dials, word to the rest of the node."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.base.nodeid import NodeId
from swarm.mesh.membership import Revocation
from swarm.mesh.record import NodeRecord
from swarm.mesh.state import Blame, Hint, State, Suspicion
from swarm.mesh.table import Held


@dataclass(frozen=True, slots=True)
class SendHints:
    """Name records and suspicions that a neighbour may lack."""

    peer: NodeId
    hints: tuple[Hint, ...]
    blames: tuple[Blame, ...] = ()


@dataclass(frozen=True, slots=True)
class SendWant:
    """Ask a neighbour for records and suspicions by name."""

    peer: NodeId
    keys: tuple[int, ...]
    blames: tuple[Blame, ...] = ()


@dataclass(frozen=True, slots=True)
class SendDelta:
    """Bring a neighbour records, suspicions and revocations."""

    peer: NodeId
    records: tuple[Held, ...]
    suspicions: tuple[Suspicion, ...] = ()
    revocations: tuple[Revocation, ...] = ()


@dataclass(frozen=True, slots=True)
class SendDigest:
    """Let a neighbour compare its table with this node's."""

    peer: NodeId
    digest: bytes


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to the node of `record` and say hello; `check`: to see whether it still lives."""

    record: NodeRecord
    check: bool = False


@dataclass(frozen=True, slots=True)
class Leave:
    """Say goodbye to a neighbour: there are enough."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Expel:
    """Close the connection to a neighbour that broke the rules, and say why in the log."""

    peer: NodeId
    why: str


@dataclass(frozen=True, slots=True)
class Accuse:
    """Sign a suspicion of this record and hear it as one's own."""

    target: int
    version: int


@dataclass(frozen=True, slots=True)
class Refresh:
    """Publish a new record of this node with a version above `above`."""

    above: int = 0


@dataclass(frozen=True, slots=True)
class Changed:
    """Something that `members` shows is different: a record, or who is suspected."""

    key: int


@dataclass(frozen=True, slots=True)
class Clash:
    """Another process runs with this node's key; `yield_`: it was there first, so this one has to stop."""

    record: NodeRecord
    yield_: bool


Action = SendHints | SendWant | SendDelta | SendDigest | Dial | Leave | Expel | Accuse | Refresh | Changed | Clash

Step = tuple[State, list[Action]]
"""The next state and what to do."""
