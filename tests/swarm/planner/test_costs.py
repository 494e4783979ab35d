"""What a route is expected to cost, from what its nodes measured."""

from __future__ import annotations

import pytest

from swarm.planner.costs import StageCost, expected_costs
from swarm.planner.fleet import Speed

SPEED = Speed(ms_1=1.0, ms_8=1.2, ms_64=2.26)
STAGES = [StageCost(SPEED, 10), StageCost(SPEED, 20)]


def test_a_pass_is_its_way_and_its_stages() -> None:
    costs = expected_costs(STAGES, way_ms=100.0, draft_ms=7.0)
    assert costs.pass_ms == pytest.approx(100.0 + 30.0 + 1.0)
    assert costs.inside_ms == pytest.approx(30.0)
    assert costs.row_ms == pytest.approx(30 * 1.26 / 63)
    assert costs.frame_ms == pytest.approx(20.0)  # the slowest stage sets the pace
    assert costs.draft_ms == 7.0


def test_a_narrow_link_makes_rows_dear() -> None:
    wide = expected_costs(STAGES, 100.0, 7.0, "bfloat16", 8192, [None])
    narrow = expected_costs(STAGES, 100.0, 7.0, "bfloat16", 8192, [10.0])
    assert narrow.row_ms - wide.row_ms == pytest.approx(2 * 8192 * 8 / 10e3)
    assert narrow.frame_row_ms == pytest.approx(2 * 8192 * 8 / 10e3, rel=0.01)
    assert expected_costs(STAGES, 100.0, 7.0, "int8", 8192, [10.0]).row_ms < narrow.row_ms


def test_a_node_that_is_faster_with_more_rows_has_a_row_cost_all_the_same() -> None:
    odd = StageCost(Speed(2.0, 1.9, 1.8), 10)
    assert expected_costs([odd], 10.0, 1.0).row_ms > 0
