"""Parts of a prompt: the quickest way through a ring, held against trying them all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.planner.costs import Costs
from swarm.run.prompt_parts import FRAME_MS, LEAST_ROWS, MOST_ROWS, prompt_rows

CPU = Costs(frame_ms=12.0, frame_row_ms=2.0)
"""A third of a model of 1.5 billion weights on one thread."""
GPU = Costs(frame_ms=10.0, frame_row_ms=0.0)


def through_ring_ms(tokens: int, rows: int, stages: int, costs: Costs) -> float:
    """When the last part leaves the last stage: every stage computes part by part, in order."""
    sizes = [min(rows, tokens - first) for first in range(0, tokens, rows)]
    free = [0.0] * stages
    for size in sizes:
        at = 0.0
        for stage in range(stages):
            at = free[stage] = max(at, free[stage]) + FRAME_MS + costs.frame_ms + (size - 1) * costs.frame_row_ms
    return free[-1]


def test_one_stage_and_stages_whose_rows_cost_nothing_get_the_largest_parts() -> None:
    assert prompt_rows(2000, 1, CPU) == MOST_ROWS
    assert prompt_rows(200, 1, CPU) == MOST_ROWS
    assert prompt_rows(2048, 8, GPU) == MOST_ROWS


def test_a_short_prompt_is_cut_where_stages_can_share_it() -> None:
    rows = prompt_rows(177, 3, CPU)
    assert LEAST_ROWS <= rows <= 45
    assert through_ring_ms(177, rows, 3, CPU) < 0.65 * through_ring_ms(177, MOST_ROWS, 3, CPU)
    assert prompt_rows(500, 8, CPU) <= 40


def test_a_prompt_that_is_held_already_has_a_size_too() -> None:
    assert prompt_rows(0, 3, CPU) == MOST_ROWS
    assert prompt_rows(1, 3, CPU) == MOST_ROWS


@given(
    tokens=st.integers(1, 3000),
    stages=st.integers(1, 12),
    one_ms=st.floats(0.1, 100.0),
    row_ms=st.floats(0.01, 20.0),
)
def test_no_other_size_is_quicker(tokens: int, stages: int, one_ms: float, row_ms: float) -> None:
    costs = Costs(frame_ms=one_ms, frame_row_ms=row_ms)
    rows = prompt_rows(tokens, stages, costs)
    assert LEAST_ROWS <= rows <= MOST_ROWS
    taken = through_ring_ms(tokens, rows, stages, costs)
    best = min(through_ring_ms(tokens, size, stages, costs) for size in range(LEAST_ROWS, MOST_ROWS + 1, 4))
    assert taken <= best * (1.0 + 1e-9)
