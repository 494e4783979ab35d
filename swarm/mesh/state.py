"""What a node knows of its swarm, and the limits and rhythms that it keeps.

Nothing here acts. `swarm.mesh.apply` turns a state and an event (`swarm.mesh.event`) into the next state and actions
(`swarm.mesh.action`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, TypeAlias

from swarm.base.bounds import Between, by_position
from swarm.base.nodeid import NodeId, SignatureBytes
from swarm.mesh.latency import Coordinate
from swarm.mesh.membership import Revocation
from swarm.mesh.record import key_of
from swarm.mesh.table import Held, Table

U64: TypeAlias = Annotated[int, Between(0, 2**64 - 1)]


@dataclass(frozen=True)
class Bounds:
    """Limits and rhythms. Seconds unless said otherwise.

    links           neighbours that a node seeks; most_links: it politely leaves some beyond these
    records         most records kept, graves included
    grave           how long a record that ended is remembered, so that it cannot come back
    sync            between two comparisons of digests
    wait            how long a wanted record is waited for before another neighbour is asked
    news_per_s      records that one neighbour may bring per second unasked, news_burst at once
    asks_per_s      records that one neighbour is asked for per second, asks_burst at once: bounds new names
    blames          suspicions that one node may utter in a minute
    redial          before a node that could not be dialled is tried again
    ban             how long a neighbour that broke the rules is turned away
    """

    links: int = 8
    most_links: int = 20
    records: int = 20_000
    grave: float = 600.0
    sync: float = 15.0
    wait: float = 3.0
    news_per_s: float = 5.0
    news_burst: float = 50.0
    asks_per_s: float = 500.0
    asks_burst: float = 25_000.0
    blames: int = 20
    redial: float = 15.0
    ban: float = 300.0


def refresh_s(members: int) -> float:
    """Seconds between an idle node's records: 10 in a small swarm, more where every record costs everybody."""
    return min(300.0, max(10.0, members * 0.15))


def ttl_s(members: int) -> int:
    """Seconds that a record lives: three refreshes."""
    return round(3 * refresh_s(members))


def round_s(members: int) -> float:
    """Seconds between two rounds (`Tick`): news waits for half a round on average."""
    return min(1.0, max(0.1, members / 1000))


@by_position
@dataclass(frozen=True)
class Suspicion:
    """`reporter` could not reach the node with key `target` at the record `version`; `wire` proves who says so."""

    target: U64
    version: U64
    reporter: NodeId
    wire: SignatureBytes = b""

    @cached_property
    def name(self) -> tuple[int, int, int]:
        """How gossip names it: target, version, first 8 bytes of the reporter."""
        return self.target, self.version, key_of(self.reporter)


Hint = tuple[int, int]
"""Key and version of a record that somebody has."""
Blame = tuple[int, int, int]
"""`Suspicion.name` of a suspicion that somebody has."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A connected member, as of second `at`.

    `news`: records it may bring unasked; `asks`: records it may be asked for; `due`: records it was asked for and may
    bring. `strikes`: times that it went beyond.
    """

    node: NodeId
    news: float
    asks: float
    at: float
    due: int = 0
    strikes: int = 0

    def later(self, bounds: Bounds, now: float) -> Neighbour:
        """With the allowances that `now` gives."""
        span = max(0.0, now - self.at)
        news = min(bounds.news_burst, self.news + span * bounds.news_per_s)
        asks = min(bounds.asks_burst, self.asks + span * bounds.asks_per_s)
        return Neighbour(self.node, news, asks, max(now, self.at), self.due, self.strikes)


@dataclass(frozen=True)
class State:
    """What a node knows of its swarm.

    wanted    key -> (version, second until which an answer is awaited, neighbours asked so far)
    news      key -> record to tell neighbours of, and the neighbours that know it already
    blamed    target key -> suspicions of its present version; rumours: suspicions to tell of
    uttered   reporter -> (count, second the minute began)
    shunned   node -> second until which it is not dialled; banned: not listened to either
    checking  nodes that were lost without a goodbye and are being dialled
    raised    highest version of ours that a process unknown to us has used
    coordinate of this node, for choosing near neighbours
    """

    node: NodeId
    own: Held | None = None
    table: Table = field(default_factory=Table)
    links: Mapping[NodeId, Neighbour] = field(default_factory=dict)
    wanted: Mapping[int, tuple[int, float, int]] = field(default_factory=dict)
    news: Mapping[int, tuple[Held, frozenset[NodeId]]] = field(default_factory=dict)
    blamed: Mapping[int, tuple[Suspicion, ...]] = field(default_factory=dict)
    rumours: tuple[tuple[Suspicion, NodeId], ...] = ()
    uttered: Mapping[NodeId, tuple[int, float]] = field(default_factory=dict)
    revoked: Mapping[bytes, Revocation] = field(default_factory=dict)
    shunned: Mapping[NodeId, float] = field(default_factory=dict)
    banned: Mapping[NodeId, float] = field(default_factory=dict)
    checking: frozenset[NodeId] = frozenset()
    coordinate: Coordinate = field(default_factory=Coordinate)
    ticks: int = 0
    next_sync: float = 0.0
    raised: int = -1
    bounds: Bounds = field(default_factory=Bounds)

    def but(self, **changes: Any) -> State:
        """A copy with some fields changed: `dataclasses.replace`, ten times as fast, since every event makes one."""
        new = object.__new__(State)
        new.__dict__.update(self.__dict__)
        new.__dict__.update(changes)
        return new
