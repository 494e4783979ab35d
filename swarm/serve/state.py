"""What the dashboard shows: the swarm's state with what a gateway or node adds. No prompt, key, secret or address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from swarm.base.swarm_state import NodeState, Phase, SwarmState
from swarm.serve.run_registry import RunState


@dataclass(frozen=True)
class StageShown:
    """A stage of a run's ring. `edge`: how its node is reached; times in ms."""

    node: str
    device: str
    layers: tuple[int, int]
    compute_ms: float
    edge: str
    rtt_ms: float | None


@dataclass(frozen=True)
class RunShown:
    """A run as the dashboard shows it. `key` says whose it is; None: not known yet, or no longer."""

    key: int
    run_id: str
    state: RunState
    started: float
    prompt_tokens: int
    max_tokens: int
    tokens: int
    tokens_per_second: float
    foreseen: float
    acceptance: float | None
    passes: int | None
    tokens_per_pass: float | None
    pass_ms: float | None
    parts_ms: Mapping[str, float]
    speculation: str | None
    drafter: str | None
    seconds: float | None
    finish_reason: str | None
    recoveries: int
    awaited: str | None
    lost: str | None
    error: str | None
    receipt: bool
    ring: tuple[StageShown, ...]
    request: str = ""
    rows_in_flight: int | None = None

    @property
    def live(self) -> bool:
        """Whether it has a ring, or is getting one."""
        return self.state in ("opening", "answering", "recovering")

    def as_json(self) -> dict[str, Any]:
        """`rows_in_flight` only where it is known."""
        return {name: value for name, value in asdict(self).items() if name != "rows_in_flight" or value is not None}


@dataclass(frozen=True)
class DashboardState:
    """Everything of one moment.

    role           "gateway" or "node"
    swarm          who is there, with model and layers as the model that is served here has them
    context        of it, in tokens
    missing_bytes  free memory that whoever takes the layers that nobody serves should have, as errors say it; their
                   weights alone where that is not known
    runs           active first, then past ones, newest first
    progress       what is under way (see EventLog.as_json)
    models         names of all models of the gateway
    """

    role: str
    swarm: SwarmState
    context: int = 0
    missing_bytes: int | None = None
    runs: tuple[RunShown, ...] = ()
    waiting: int = 0
    progress: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()

    @property
    def phase(self) -> Phase:
        return self.swarm.phase

    def as_json(self) -> dict[str, Any]:
        """What `/api/state` tells. Fields stay; new ones may come."""
        seen = self.swarm
        return {
            "role": self.role,
            "here": seen.here,
            "swarm": seen.swarm,
            "model": seen.model,
            "digest": seen.digest,
            "n_layers": seen.n_layers,
            "context": self.context,
            "nodes": [_node_json(node, seen.here) for node in seen.nodes],
            "edges": [asdict(edge) for edge in seen.edges],
            "holders": list(seen.held),
            "missing": [list(span) for span in seen.missing],
            "missing_bytes": self.missing_bytes,
            "runs": [run.as_json() for run in self.runs],
            "waiting": self.waiting,
            "progress": dict(self.progress),
            "models": list(self.models),
            "phase": self.phase,
        }


def layer_ms(node: NodeState) -> float | None:
    """Of one layer and one row; None: not measured."""
    return (node.speed_ms[0] or None) if node.speed_ms is not None else None


def queue_ms(node: NodeState) -> float | None:
    """Mean wait of a frame; None where no layers are that it could wait for."""
    return node.queue_ms if node.layers is not None else None


def _node_json(node: NodeState, here: str) -> dict[str, Any]:
    """Who takes layers is shown with those, and who is down as "lost"."""
    taking = node.claim if node.says == "joining" else None
    layers = taking or node.layers
    return {
        "id": node.id,
        "name": node.name,
        "device": node.device,
        "layers": None if layers is None else list(layers),
        "state": "lost" if node.standing == "down" else node.state,
        "layer_ms": layer_ms(node),
        "kv_used": node.kv_used,
        "kv_budget": node.kv_capacity or None,
        "sessions": node.sessions,
        "queue_ms": queue_ms(node),
        "owner": node.owner,
        "here": node.id == here,
    }
