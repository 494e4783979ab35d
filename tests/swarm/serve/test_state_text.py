"""The dashboard's state: written once for all viewers, and looked at cheaply where only the phase is wanted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from swarm.base.swarm_state import NodeState, SwarmState
from swarm.serve.allowance import Allowances
from swarm.serve.compat.kept import KeptAnswers
from swarm.serve.config import GatewayConfig
from swarm.serve.desks import LOOK_S, Desk
from swarm.serve.metrics import GatewayMetrics
from swarm.serve.run_registry import RunNote
from swarm.serve.snapshot import phase_from, run_shown, state_from
from swarm.serve.state_broadcaster import written
from tests.swarm.serve import scenes
from tests.swarm.serve.tiny import TinyBackend

RUNS = tuple(run_shown(RunNote(key, "ann", 1.0, 3, 8, error="ögg"), 2.0, rows) for key, rows in ((1, None), (2, 5)))
TOLD = [json.loads(json.dumps(run.as_json())) for run in RUNS]


def test_viewers_see_all_runs_or_their_own() -> None:
    state = replace(state_from(scenes.SERVING, scenes.MANIFEST, "gateway"), runs=RUNS)
    text = written(state)
    assert json.loads(text.shown()) == json.loads(json.dumps(state.as_json()))
    for own, shown in ((frozenset({2}), TOLD[1:]), (frozenset(), []), (frozenset({1, 2, 3}), TOLD)):
        assert json.loads(text.shown(own)) == {**json.loads(json.dumps(state.as_json())), "runs": shown}


@pytest.mark.parametrize("scene", ["EMPTY", "FORMING", "SERVING"])
def test_the_phase_alone_is_that_of_the_state(scene: str) -> None:
    view = getattr(scenes, scene)
    assert phase_from(view, scenes.MANIFEST.n_layers) == state_from(view, scenes.MANIFEST, "gateway").phase


def test_requests_that_come_together_look_once(tmp_path: Path) -> None:
    class Looked(TinyBackend):
        looks = 0

        def view(self) -> SwarmState:
            self.looks += 1
            return super().view()

    backend = Looked(tmp_path, state=SwarmState("00" * 32, nodes=(NodeState("01" * 32, layers=(0, 2)),)))
    desk = Desk(backend, GatewayConfig(), GatewayMetrics(), KeptAnswers(), Allowances(()))
    assert [desk.served_lately(now) for now in (10.0, 10.0, 10.0 + LOOK_S / 2)] == [True] * 3 and backend.looks == 1
    backend.state = SwarmState("00" * 32)
    assert not desk.served_lately(10.0 + LOOK_S) and backend.looks == 2
