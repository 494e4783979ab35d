"""A swarm as one process sees it at one moment: the one record that terminal, dashboard, metrics and programs read.

`swarm.mesh.status` makes it of members; who knows more adds it (the model's name, the ring that a request would take).
What is shown outside is written from it: `swarm status --json` by `swarm.terminal.status.status_json`, the dashboard's
state by `swarm.serve.state`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Phase = Literal["empty", "forming", "serving"]
Standing = Literal["up", "suspect", "down"]
Span = tuple[int, int]
"""Layers [first, last)."""


@dataclass(frozen=True)
class NodeState:
    """One node. Times in ms, sizes in bytes; None: unknown, or not there.

    id        text form of its key
    standing  whether it is heard of: "up", "suspect" (others doubt it), "down" (was here)
    says      its own word: "joining", "serving", "draining"
    layers    what it serves;   `claim`: what it is about to take
    speed_ms  of one layer, for 1, 8 and 64 rows;   `overflow_ms` alike, of the `overflow` layers kept in other memory
    rtt_ms    from here;   `edge`: how it is connected with this process (`swarm.net.peer`), None where it is not
    age_s     since it said this
    """

    id: str
    standing: Standing = "up"
    says: str = "serving"
    layers: Span | None = None
    claim: Span | None = None
    name: str = ""
    device: str = ""
    dtype: str = ""
    fingerprint: str = ""
    speed_ms: tuple[float, float, float] | None = None
    overflow: int = 0
    overflow_ms: tuple[float, float, float] | None = None
    kv_free: int = 0
    kv_capacity: int = 0
    sessions: int = 0
    queue_ms: float = 0.0
    rtt_ms: float | None = None
    edge: str | None = None
    owner: str = ""
    addresses: tuple[str, ...] = ()
    relay: bool = False
    age_s: float = 0.0
    software: str = ""

    @property
    def short(self) -> str:
        """Its name for people."""
        return self.name or self.id[:8]

    @property
    def state(self) -> str:
        """In one word: its own, unless it is doubted or gone."""
        return self.says if self.standing == "up" else self.standing

    @property
    def serves(self) -> bool:
        """Whether its layers count."""
        return self.state == "serving" and self.layers is not None

    @property
    def kv_used(self) -> int | None:
        return self.kv_capacity - self.kv_free if self.kv_capacity else None


@dataclass(frozen=True)
class EdgeState:
    """A measured path between two nodes, ids `a` and `b`.

    `kind`: "direct", "reverse", "punched", "http" or "relay"; "" where nobody says.
    """

    a: str
    b: str
    rtt_ms: float
    kind: str = ""


@dataclass(frozen=True)
class StageState:
    """A stage of a route: whose layers [first, last), when a frame arrives after the one before, what it takes there.

    `edge`: kind of the edge into it; None where nobody says.
    """

    node: str
    layers: Span
    edge: str | None
    arrive_ms: float
    compute_ms: float


@dataclass(frozen=True)
class RouteState:
    """The way that a request of this process would take now. `pass_ms`: once round; `return_ms`: the way home of it."""

    stages: tuple[StageState, ...]
    return_ms: float
    return_edge: str | None
    pass_ms: float


@dataclass(frozen=True)
class SwarmState:
    """Everything of one moment.

    here      id of the process that sees this;   `swarm`: hex
    open      whoever comes is a member
    model     its name, `digest` its manifest's; `n_layers`: of the model that is served here, else as members say
    nodes     who was heard of lately;   `edges`: what is measured between them, one a pair
    rtts_ms   round trips between the first of `nodes`, measured or estimated; empty where nobody asked
    route     None: not every layer is held, or nobody asked
    """

    here: str
    swarm: str = ""
    open: bool = False
    model: str = ""
    digest: str = ""
    n_layers: int = 0
    nodes: tuple[NodeState, ...] = ()
    edges: tuple[EdgeState, ...] = ()
    rtts_ms: tuple[tuple[float, ...], ...] = ()
    route: RouteState | None = None

    @property
    def held(self) -> tuple[int, ...]:
        """Per layer, how many nodes serve it."""
        count = [0] * self.n_layers
        for node in self.nodes:
            if node.layers is not None and node.serves:
                for layer in range(max(0, node.layers[0]), min(self.n_layers, node.layers[1])):
                    count[layer] += 1
        return tuple(count)

    @property
    def missing(self) -> tuple[Span, ...]:
        """Ranges of layers that nobody serves."""
        return find_missing(self.held)

    @property
    def phase(self) -> Phase:
        """How far it has come."""
        return phase_of(self.held)


def phase_of(holders: Sequence[int]) -> Phase:
    """How far a swarm has come, by how many serve each layer."""
    if not any(holders):
        return "empty"
    return "serving" if all(holders) else "forming"


def find_missing(holders: Sequence[int]) -> tuple[Span, ...]:
    """Ranges [first, last) of layers that nobody serves."""
    ranges: list[Span] = []
    for layer, count in enumerate(holders):
        if count:
            continue
        if ranges and ranges[-1][1] == layer:
            ranges[-1] = (ranges[-1][0], layer + 1)
        else:
            ranges.append((layer, layer + 1))
    return tuple(ranges)
