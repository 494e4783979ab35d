"""What the dashboard shows, as plain data: `DashboardState` for gateways and nodes. No prompt, key or secret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Phase = Literal["empty", "forming", "serving"]


@dataclass(frozen=True)
class NodeState:
    """One node. `layers` is [first, last) or None while it holds none; times in ms, sizes in bytes.

    `state`: "serving", "suspect" (others doubt it), "joining" (`layers` is what it is about to take), "draining" or
    "lost" (was here, is not heard of any more).
    """

    id: str
    name: str = ""
    device: str = ""
    layers: tuple[int, int] | None = None
    state: str = "serving"
    layer_ms: float | None = None
    kv_used: int | None = None
    kv_budget: int | None = None
    sessions: int | None = None
    queue_ms: float | None = None
    owner: str = ""
    here: bool = False


@dataclass(frozen=True)
class EdgeState:
    """A measured path between two nodes, ids `a` and `b`.

    `kind`: "direct", "reverse", "punched", "http" or "relay"; "" where nobody says.
    """

    a: str
    b: str
    rtt_ms: float | None
    kind: str = ""


@dataclass(frozen=True)
class DashboardState:
    """Everything of one moment.

    role      "gateway" or "node"
    here      id of the node or requester that tells this
    holders   per layer, how many nodes serve it
    missing   layer ranges [first, last) that nobody serves; `missing_bytes`: free memory that whoever takes them should
              have, as errors say it; their weights alone where that is not known
    runs      active first, then past ones, newest first (see RunNote.as_json)
    progress  what is under way (see EventLog.as_json)
    models    names of all models of the gateway
    """

    role: str
    here: str
    swarm: str = ""
    model: str = ""
    digest: str = ""
    n_layers: int = 0
    context: int = 0
    nodes: tuple[NodeState, ...] = ()
    edges: tuple[EdgeState, ...] = ()
    holders: tuple[int, ...] = ()
    missing: tuple[tuple[int, int], ...] = ()
    missing_bytes: int | None = None
    runs: tuple[Mapping[str, Any], ...] = ()
    waiting: int = 0
    progress: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()

    @property
    def phase(self) -> Phase:
        return phase_of(self.holders)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "phase": self.phase}


def phase_of(holders: Sequence[int]) -> Phase:
    """How far a swarm has come, by how many serve each layer."""
    if not any(holders):
        return "empty"
    return "serving" if all(holders) else "forming"


def count_holders(nodes: Sequence[NodeState], n_layers: int) -> tuple[int, ...]:
    """Per layer, how many serving nodes hold it."""
    count = [0] * n_layers
    for node in nodes:
        if node.layers is not None and node.state == "serving":
            for layer in range(max(0, node.layers[0]), min(n_layers, node.layers[1])):
                count[layer] += 1
    return tuple(count)


def find_missing(holders: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ranges [first, last) of layers that nobody serves."""
    ranges: list[tuple[int, int]] = []
    for layer, count in enumerate(holders):
        if count:
            continue
        if ranges and ranges[-1][1] == layer:
            ranges[-1] = (ranges[-1][0], layer + 1)
        else:
            ranges.append((layer, layer + 1))
    return tuple(ranges)
