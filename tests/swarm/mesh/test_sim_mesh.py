"""The simulator in small: everybody learns of joins and ends, layers stay covered, routes come near the optimum."""

from __future__ import annotations

import pytest

from swarm.mesh.action import SendDelta
from swarm.mesh.messages import HINTS, delta_message, names_message, sign_suspicion
from swarm.mesh.table import Held
from tests.bench.sim_earth import Earth
from tests.bench.sim_measures import coverage, membership
from tests.bench.sim_routes import routes
from tests.bench.sim_world import RECORD_BYTES, SUSPICION_BYTES
from tests.swarm.mesh.make import ANN, MEMBERSHIP, signed


def test_all_learn_of_joins_and_ends_in_seconds() -> None:
    found = membership(80, 40.0, per_minute=0.3, tracked=10)
    for kind, within in (("join", 3.0), ("death", 12.0)):
        assert found[kind] is not None and found[kind]["events"] >= 2
        assert found[kind]["known_share"] == 1.0 and found[kind]["worst_all_s"] <= within
    assert found["dead_shown_alive"] < 0.05 and found["alive_not_shown"] < 0.05  # whoever ended a second ago
    assert found["bytes_per_node_per_s"]["mean"] < 20_000
    assert found["links"]["least"] >= 3


def test_layers_stay_covered_while_nodes_come_and_go() -> None:
    found = coverage(24, 120.0, (8, 12), per_minute=0.1)
    assert found["covered_at_start"] and found["covered_share_of_time"] > 0.9


def test_routes_come_near_the_optimum() -> None:
    (found,) = routes(300, 100, 10, probes=[16])
    assert found["ratio"][0]["mean"] <= 1.15


def test_what_the_simulator_counts_is_what_is_sent() -> None:
    said = sign_suspicion(2**63, 2**50, ANN.id, MEMBERSHIP.swarm, ANN.sign)
    alone = len(delta_message(SendDelta(b"", ()), 0.0).body)
    both = len(delta_message(SendDelta(b"", (Held.of(signed(), -99.0),), (said,)), 0.0).body) - alone
    assert both == pytest.approx(RECORD_BYTES + 8 + SUSPICION_BYTES, rel=0.2)
    assert len(names_message(HINTS, [(1, 2)] * 10, [(1, 2, 3)]).body) == 184


def test_distances_are_symmetric_and_like_those_of_the_internet() -> None:
    earth = Earth(3)
    numbers = [earth.add() for _ in range(60)]
    matrix = earth.matrix(numbers)
    assert (matrix == matrix.T).all() and 40 < sorted(matrix[matrix > 0])[len(matrix) ** 2 // 2] < 250
    assert max(matrix.max(axis=1)) < 600
