"""From a requester's or node's view of the swarm to the dashboard's state."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from swarm.base.swarm_state import Phase, SwarmState
from swarm.run.api import StageInfo
from swarm.serve.admission import FairQueue
from swarm.serve.backend import Backend, ServedModel
from swarm.serve.run_registry import RunBook, RunNote
from swarm.serve.state import DashboardState, RunShown, StageShown

SHOWN_RUNS = 30

Progress = Callable[[], Mapping[str, Any]]


def gateway_state(
    backend: Backend, book: RunBook, queue: FairQueue, progress: Mapping[str, Any] | None = None
) -> DashboardState:
    """The swarm as the requester sees it, with the gateway's own runs."""
    now = time.monotonic()
    notes = [*reversed(book.active.values()), *book.past][:SHOWN_RUNS]
    rows = backend.rows_in_flight()
    runs = tuple(run_shown(note, now, rows.get(note.run_id)) for note in notes)
    state = state_from(backend.view(), backend.manifest, "gateway", runs, queue.n_waiting, progress)
    asked: Callable[[Sequence[tuple[int, int]]], int] | None = getattr(backend, "memory_for", None)
    missing = state.swarm.missing
    return replace(state, missing_bytes=asked(missing)) if asked is not None and missing else state


def phase_from(seen: SwarmState, n_layers: int) -> Phase:
    """How far the swarm has come, for a model of so many layers."""
    return replace(seen, n_layers=n_layers).phase


def state_from(
    seen: SwarmState,
    manifest: ServedModel,
    role: str,
    runs: tuple[RunShown, ...] = (),
    waiting: int = 0,
    progress: Mapping[str, Any] | None = None,
) -> DashboardState:
    """What is seen of the swarm, with the model that is served here."""
    seen = replace(seen, model=manifest.model, digest=manifest.digest, n_layers=manifest.n_layers)
    return DashboardState(
        role=role,
        swarm=seen,
        context=manifest.context,
        missing_bytes=sum(manifest.layer_bytes(layer) for layer, n in enumerate(seen.held) if not n) or None,
        runs=runs,
        waiting=waiting,
        progress=progress or {},
    )


def run_shown(note: RunNote, now: float, rows_in_flight: int | None = None) -> RunShown:
    """A run as it is at `now` (monotonic seconds)."""
    result = note.result
    return RunShown(
        key=note.key,
        run_id=note.run_id,
        state=note.state,
        started=round(note.started, 3),
        prompt_tokens=note.prompt_tokens,
        max_tokens=note.max_tokens,
        tokens=note.tokens,
        tokens_per_second=round(note.rate(now), 2),
        foreseen=round(note.drafted / note.tokens, 4) if note.tokens else 0.0,
        acceptance=round(result.acceptance, 4) if result and result.rows_sent else None,
        passes=result.passes if result else None,
        tokens_per_pass=round(result.tokens_per_pass, 3) if result else None,
        pass_ms=round(result.pass_ms, 2) if result else None,
        parts_ms=dict(result.parts_ms) if result else {},
        speculation=result.speculation if result else None,
        drafter=result.drafter if result else None,
        seconds=round(result.seconds, 3) if result else None,
        finish_reason=result.finish_reason if result else None,
        recoveries=note.recoveries,
        awaited=note.awaited,
        lost=note.lost,
        error=note.error,
        receipt=result is not None and result.receipt is not None,
        ring=tuple(_stage_shown(stage) for stage in note.ring),
        request=note.request,
        rows_in_flight=rows_in_flight,
    )


def _stage_shown(stage: StageInfo) -> StageShown:
    rtt = None if stage.rtt_ms is None else round(stage.rtt_ms, 2)
    return StageShown(stage.node, stage.device, stage.layers, round(stage.compute_ms, 3), stage.edge, rtt)
