from __future__ import annotations

import pytest

from draft.base import Child
from draft.calibrate import Calibration
from swarm.planner.costs import Costs
from swarm.run.controller import Controller, Setting

COSTS = Costs(pass_ms=200.0, row_ms=1.0, frame_ms=10.0, frame_row_ms=0.5, draft_ms=10.0)


def passes(control: Controller, latency: float, count: int = 40, rows: int = 1, **how: object) -> Controller:
    for _ in range(count):
        control.answered(latency, rows, False, **how)  # type: ignore[arg-type]
    return control


def test_a_row_costs_more_where_bytes_are_dear_and_where_tokens_come_fast() -> None:
    cheap, dear = Controller(COSTS), Controller(Costs(pass_ms=200.0, row_ms=8.0))
    assert cheap.row_floor < dear.row_floor
    slow = cheap.row_floor
    for _ in range(50):
        cheap.committed(3, 100.0, 0.0)
    assert cheap.rate == pytest.approx(0.03, rel=0.1) and cheap.row_floor > 2 * slow


def test_the_price_of_time_is_never_under_plain_decoding() -> None:
    control = passes(Controller(COSTS), 100.0)
    control.committed(0, 10_000.0, 0.0)
    assert control.rate == pytest.approx(0.01, rel=0.05)


def test_the_empty_pass_is_followed_down_at_once_and_not_up_by_queueing() -> None:
    control = passes(Controller(COSTS), 150.0)
    assert control.pass_ms == pytest.approx(150.0)
    passes(control, 100.0, 8)
    assert control.pass_ms == pytest.approx(100.0, abs=1.0)
    passes(control, 300.0, 10)
    assert control.pass_ms < 115.0
    for _ in range(60):
        control.answered(300.0, 1, True)
    assert control.pass_ms == pytest.approx(300.0, rel=0.05), "an empty pipe that takes longer is a longer way"


def test_rows_of_a_frame_are_not_mistaken_for_a_longer_way() -> None:
    control = passes(Controller(COSTS), 200.0)
    passes(control, 263.0, 40, rows=64)
    assert control.pass_ms == pytest.approx(200.0, abs=1.0) and control.frame_floor == pytest.approx(0.0, abs=0.01)


def test_frames_that_queue_slow_the_pace_and_raise_the_price_until_they_do_not() -> None:
    control = passes(Controller(COSTS), 200.0, 10)
    quick = control.interval_ms(1)
    passes(control, 320.0, 30)
    assert control.interval_ms(1) > 1.5 * quick and control.frame_floor > 0.3
    passes(control, 200.0, 400)
    assert control.interval_ms(1) == pytest.approx(quick, rel=0.05) and control.frame_floor < 0.05


def test_stages_that_tell_keep_jitter_of_links_from_looking_like_queues() -> None:
    calm = [(0.0, 10.0)] * 3
    control = passes(Controller(COSTS), 200.0, 10, stages=calm)
    passes(control, 320.0, 60, stages=calm)
    assert control.frame_floor == pytest.approx(0.0, abs=1e-3)
    passes(control, 320.0, 60, stages=[(40.0, 10.0)] * 3)
    assert control.frame_floor > 0.3


def test_the_pace_follows_the_slowest_stage() -> None:
    control = Controller(COSTS)
    passes(control, 200.0, 100, stages=[(0.0, 5.0), (0.0, 31.5), (0.0, 5.0)])
    assert control.interval_ms(1) == pytest.approx(31.5, rel=0.05)


def test_a_waiting_send_drafts_on_while_a_step_wins_more_than_its_time() -> None:
    control = passes(Controller(COSTS), 200.0)
    assert control.keep_drafting([0.5], 0.5, gain=0.5, drafted_ms=10.0)
    assert not control.keep_drafting([0.5], 0.5, gain=0.02, drafted_ms=10.0)
    assert not control.keep_drafting([1.0] * 20, 0.5, gain=0.5, drafted_ms=10.0), "time is dear when much would go now"


def test_a_fixed_setting_fills_its_rows_with_the_best() -> None:
    control = Controller(COSTS, Setting("tree", rows=2, fixed=True))
    assert control.row_floor == 0.0 == control.frame_floor
    assert control.keep_drafting([0.5], 0.1, gain=0.0, drafted_ms=1e6)
    assert control.keep_drafting([0.5, 0.2], 0.3, gain=0.0, drafted_ms=1e6)
    assert not control.keep_drafting([0.5, 0.2], 0.1, gain=9.0, drafted_ms=0.0)


def test_a_drafter_that_never_hits_is_asked_now_and_then_only() -> None:
    control, calibration = Controller(COSTS), Calibration()
    assert control.worth_asking(calibration, 0, 0.0)
    for _ in range(60):
        calibration.observe([Child(1, 0.9)], 2)
    assert not control.worth_asking(calibration, 3, 0.0)
    assert control.worth_asking(calibration, 24, 0.0)


def test_a_drafter_that_never_hit_has_another_trial_after_a_rest() -> None:
    """Also in a later run: what the first one thought of it does not hold for the life of the process."""
    control, calibration = Controller(COSTS), Calibration()

    def observed(truth: int, now: float) -> bool:
        calibration.observe([Child(1, 0.9)], truth)
        return control.worth_asking(calibration, 0, now)

    def asked_for(truth: int, now: float) -> int:
        """Tokens after which it is left alone."""
        return next((n for n in range(1, 700) if not observed(truth, now)), 700)

    asked_for(2, 0.0)
    rests = [30.0, 60.0, 120.0, 240.0, 480.0, 480.0]
    now = 0.0
    for rest in rests:
        assert not control.worth_asking(calibration, 0, now + 0.99 * rest)
        now += rest
        assert control.worth_asking(calibration, 0, now)
        assert calibration.coverage > 0.3, "a trial is one only when its drafts are believed"
        assert 12 <= asked_for(2, now) < 40
    now += 480.0
    assert control.worth_asking(calibration, 0, now) and asked_for(1, now) == 700
    assert 200 < asked_for(2, now) < 700
    assert not control.worth_asking(calibration, 0, now + 29.0) and control.worth_asking(calibration, 0, now + 31.0)


def test_steps_that_compute_nothing_do_not_make_the_others_look_slow() -> None:
    control = Controller(COSTS)
    for step in range(60):
        control.drafted(0.2 if step % 3 == 0 else 10.0, 1)
    assert control.crowding == 0.0
    for _ in range(30):
        control.drafted(30.0, 1)
    assert control.crowding == 1.0
    assert not control.worth_step(0.05) and control.worth_step(0.5)


def test_more_leaves_are_not_mistaken_for_a_crowd() -> None:
    control = Controller(COSTS)
    for step in range(60):
        control.drafted(6.8 if step % 2 else 11.0, 1 if step % 2 else 8)
    assert control.crowding == 0.0


def test_a_tails_head_is_asked_as_far_ahead_as_it_is_worth() -> None:
    """Far where it is right and quick, less where a level is dear, hardly ever where it is never right."""
    right, wrong = Calibration(), Calibration()
    for _ in range(40):
        right.observe([Child(3, 0.9)], 3)
        wrong.observe([Child(3, 0.9)], 4)
    control = Controller(COSTS)
    assert control.tail_levels(right, 1, 0.0) >= 6
    assert control.tail_levels(wrong, 1, 0.0) == 0 and control.tail_levels(wrong, 1000, 0.0) == 1
    for _ in range(40):
        control.tail_drafted(3 * 120.0, 3)
    assert 0 < control.tail_levels(right, 1, 0.0) < 6
    assert Controller(COSTS, Setting(mode="plain")).tail_levels(right, 1, 0.0) == 0
    assert Controller(COSTS, Setting(rows=4, fixed=True)).tail_levels(wrong, 1, 0.0) == 4
