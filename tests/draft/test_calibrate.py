from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draft.base import Child
from draft.calibrate import Calibration


def drafted(rng: random.Random, honest: float) -> tuple[list[Child], int]:
    """Two proposals and the truth; the first is right with `honest` times its confidence."""
    confidence = rng.choice((0.2, 0.5, 0.9))
    draw = rng.random()
    right = draw < confidence * honest
    second = not right and draw < confidence * honest + 0.05
    return [Child(1, confidence), Child(2, 0.05)], 1 if right else 2 if second else 3


@pytest.mark.parametrize("honest", [1.0, 0.5, 0.1])
def test_shares_approach_what_is_accepted(honest: float) -> None:
    rng, calibration = random.Random(4), Calibration()
    for _ in range(1500):
        calibration.observe(*drafted(rng, honest))
    for confidence in (0.2, 0.5, 0.9):
        assert calibration.share(0, confidence) == pytest.approx(confidence * honest, abs=0.1)
    assert calibration.share(1, 0.05) == pytest.approx(0.05, abs=0.03)


def test_a_drafter_that_is_sure_and_wrong_loses_credit_in_all_cells_within_a_few_tokens() -> None:
    calibration = Calibration()
    before = calibration.share(0, 0.9)
    for _ in range(12):
        calibration.observe([Child(1, 0.9)], 0)
    assert calibration.share(0, 0.9) < before / 8
    assert calibration.share(0, 0.4) < 0.4 / 6, "also where it was never seen"
    assert calibration.coverage < 0.15


def test_good_times_return() -> None:
    calibration = Calibration()
    for _ in range(500):
        calibration.observe([Child(1, 0.9)], 0)
    for _ in range(300):
        calibration.observe([Child(1, 0.9)], 1)
    assert calibration.share(0, 0.9) > 0.6


def test_saying_nothing_lowers_coverage_and_no_share() -> None:
    calibration = Calibration()
    share, coverage = calibration.share(0, 0.9), calibration.coverage
    calibration.observe([], 5)
    assert calibration.share(0, 0.9) == share and calibration.coverage < coverage
    assert calibration.observations == 1.0


@given(st.lists(st.tuples(st.lists(st.floats(0, 1), max_size=12), st.integers(0, 12)), max_size=40), st.floats(0, 1))
def test_shares_are_chances_whatever_was_seen(seen: list[tuple[list[float], int]], confidence: float) -> None:
    calibration = Calibration()
    for confidences, truth in seen:
        calibration.observe([Child(i, c) for i, c in enumerate(confidences)], truth)
    for rank in range(12):
        assert 0.0 <= calibration.share(rank, confidence) < 1.0
    assert 0.0 <= calibration.coverage <= 1.0
