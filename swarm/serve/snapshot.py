"""From a requester's or node's view of the mesh to the dashboard's state. Tolerant: what is not told is not shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from swarm.serve.admission import FairQueue
from swarm.serve.backend import Backend, ServedModel
from swarm.serve.run_registry import RunBook
from swarm.serve.state import DashboardState, EdgeState, NodeState, Phase, count_holders, find_missing, phase_of

SHOWN_RUNS = 30

Progress = Callable[[], Mapping[str, Any]]


def gateway_state(
    backend: Backend, book: RunBook, queue: FairQueue, progress: Mapping[str, Any] | None = None
) -> DashboardState:
    """The swarm as the requester sees it, with the gateway's own runs."""
    now = time.monotonic()
    notes = [*reversed(book.active.values()), *book.past][:SHOWN_RUNS]
    seen = backend.view()
    live = seen.get("runs", {})
    runs = tuple({**note.as_json(now), **live.get(note.run_id, {})} for note in notes)
    state = state_from(seen, backend.manifest, "gateway", runs, queue.n_waiting, progress)
    asked: Callable[[Sequence[tuple[int, int]]], int] | None = getattr(backend, "memory_for", None)
    return replace(state, missing_bytes=asked(state.missing)) if asked is not None and state.missing else state


def phase_from(status: Mapping[str, Any], n_layers: int) -> Phase:
    """How far the swarm has come, without the rest of the state. `status`: as `mesh_status` tells it."""
    return phase_of(count_holders([_node(entry, "") for entry in status.get("nodes", ())], n_layers))


def state_from(
    status: Mapping[str, Any],
    manifest: ServedModel,
    role: str,
    runs: tuple[Mapping[str, Any], ...] = (),
    waiting: int = 0,
    progress: Mapping[str, Any] | None = None,
) -> DashboardState:
    """`status`: as `mesh_status` tells it."""
    here = str(status.get("node", ""))
    nodes = tuple(_node(entry, here) for entry in status.get("nodes", ()))
    holders = count_holders(nodes, manifest.n_layers)
    layer_bytes = manifest.layer_bytes
    return DashboardState(
        role=role,
        here=here,
        swarm=str(status.get("swarm", "")),
        model=manifest.model,
        digest=manifest.digest,
        n_layers=manifest.n_layers,
        context=manifest.context,
        nodes=nodes,
        edges=tuple(_edge(entry) for entry in status.get("edges", ())),
        holders=holders,
        missing=find_missing(holders),
        missing_bytes=sum(layer_bytes(layer) for layer, count in enumerate(holders) if not count) or None,
        runs=runs,
        waiting=waiting,
        progress=progress or {},
    )


def _node(entry: Mapping[str, Any], here: str) -> NodeState:
    layers = entry.get("layers")
    return NodeState(
        id=str(entry["id"]),
        name=str(entry.get("name", "")),
        device=str(entry.get("device", "")),
        layers=(int(layers[0]), int(layers[1])) if layers and layers[1] > layers[0] else None,
        state=str(entry.get("state", "serving")),
        layer_ms=entry.get("layer_ms"),
        kv_used=entry.get("kv_used"),
        kv_budget=entry.get("kv_budget"),
        sessions=entry.get("sessions"),
        queue_ms=entry.get("queue_ms"),
        owner=str(entry.get("owner", "")),
        here=str(entry["id"]) == here,
    )


def _edge(entry: Mapping[str, Any]) -> EdgeState:
    return EdgeState(str(entry["a"]), str(entry["b"]), entry.get("rtt_ms"), str(entry.get("kind", "")))
