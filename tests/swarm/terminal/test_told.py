"""What programs read of a swarm stays as it is: `swarm status --json` and the dashboard's state, byte for byte.

`told.json` was written before both were made from one record.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from swarm.mesh.gossip import Gossip
from swarm.mesh.status import state_of
from swarm.serve.snapshot import state_from
from swarm.terminal.status import look_now, status_json
from tests.swarm.serve.tiny import TinyManifest
from tests.swarm.terminal.told import ME, MODEL, A, Told, edge_of, members

PINNED: dict[str, Any] = json.loads((Path(__file__).parent / "told.json").read_text())
SHOWN = {"whole": members(), "holed": members()[:1], "empty": []}


@pytest.mark.parametrize("scene", SHOWN)
def test_status_json_stays(scene: str) -> None:
    seen = look_now(cast(Gossip, Told(SHOWN[scene])), ME, MODEL, "tiny", edge_of=edge_of)
    assert json.dumps(status_json(seen)) == json.dumps(PINNED[f"{scene} status"])


@pytest.mark.parametrize("scene", SHOWN)
def test_the_state_of_the_dashboard_stays(scene: str) -> None:
    seen = state_of(SHOWN[scene], A, b"s" * 10, False, edge_of)
    told = state_from(seen, TinyManifest(n_layers=10), "node").as_json()
    assert json.dumps(told) == json.dumps(PINNED[f"{scene} page"])
