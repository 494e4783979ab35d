from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.run.estimators import Floor, Slope, Trial


def test_a_slope_is_found_in_noise_and_held_near_the_guess_before_that() -> None:
    rng, slope = random.Random(1), Slope(0.7)
    assert slope.value == pytest.approx(0.7)
    for _ in range(4):
        slope.add(rng.randint(1, 20), rng.gauss(200.0, 30.0))
    assert slope.value == pytest.approx(0.7, abs=1.5)
    for _ in range(300):
        rows = rng.randint(1, 20)
        slope.add(rows, 150.0 + 5.0 * rows + rng.gauss(0.0, 20.0))
    assert slope.value == pytest.approx(5.0, rel=0.25)


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1e5)), max_size=50))
def test_a_slope_stays_within_reason(samples: list[tuple[int, float]]) -> None:
    slope = Slope(2.0)
    for rows, ms in samples:
        slope.add(rows, ms)
    assert 0.5 <= slope.value <= 40.0


def test_a_floor_falls_fast_and_rises_slowly_unless_alone() -> None:
    floor = Floor(999.0)
    floor.add(100.0, False)
    assert floor.value == 100.0, "the first sample replaces a higher guess"
    low = Floor(60.0)
    low.add(100.0, False)
    assert low.value == 60.0, "a lower guess is believed: the sample may be from a crowd"
    for _ in range(10):
        floor.add(200.0, False)
    assert floor.value < 106.0
    for _ in range(30):
        floor.add(200.0, True)
    assert floor.value > 190.0
    floor.add(100.0, False)
    assert floor.value < 150.0


def spend(trial: Trial, rates: list[float], passes: int, doubt: bool = True) -> list[int]:
    """Run so many passes; way w makes rates[w] tokens per pass. Returns how many passes each way ran."""
    ran = [0] * len(rates)
    for _ in range(passes):
        ran[trial.way] += 1
        trial.committed(round(100 * rates[trial.way]), 100.0, 100.0, doubt)
    return ran


@pytest.mark.parametrize("rates", [[3.0, 2.0, 1.0], [2.0, 3.0, 1.0], [0.8, 0.9, 1.0], [0.9, 0.5, 0.4], [1.0, 2.0]])
def test_the_best_way_runs_nearly_always(rates: list[float]) -> None:
    ran = spend(Trial(len(rates)), rates, 2000)
    assert ran[rates.index(max(rates))] > 0.8 * 2000


def test_without_doubt_nothing_is_tried() -> None:
    assert spend(Trial(3), [1.0, 5.0, 5.0], 500, doubt=False) == [500, 0, 0]
    assert spend(Trial(1), [1.0], 50) == [50]


def test_a_way_that_becomes_better_is_found() -> None:
    trial = Trial(2)
    spend(trial, [1.0, 2.0], 200)
    assert trial.way == 1
    ran = spend(trial, [2.0, 1.0], 2000)
    assert trial.way == 0 and ran[0] > 1200
