"""Limits and gates: what separates an honest stage from a cheaper one."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts.check.recompute import (
    ErrorLimits,
    Limit,
    at_usual_noise,
    calibrate,
    default_limit,
    delta_error,
    judge_rows,
    judge_scores,
    limits_bytes,
    limits_untrusted,
)
from receipts.check.samples import Measured, TokenSample
from receipts.format.errors import ReceiptError, Refusal

ROW = st.lists(st.floats(-100, 100), min_size=1, max_size=20)


def test_the_error_is_relative_to_the_delta_not_to_the_row() -> None:
    """A large input must not hide a small delta that was not computed."""
    inputs, expected = [1000.0, 1000.0], [1001.0, 1000.0]
    assert delta_error(inputs, expected, expected) == 0
    assert delta_error(inputs, inputs, expected) == 1
    assert delta_error(inputs, [1000.5, 1000.0], expected) == 0.5


@given(ROW)
def test_no_compute_is_always_one(row: list[float]) -> None:
    expected = [value + 1.0 for value in row]
    assert math.isclose(delta_error(row, row, expected), 1.0)


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ([1.0], [math.nan], [2.0]),
        ([1.0], [math.inf], [2.0]),
        ([1.0], [2.0], [math.nan]),
        ([1.0, 2.0], [2.0], [2.0, 3.0]),
        ([1.0], [1.5], [1.0]),
    ],
)
def test_what_cannot_be_judged_never_passes(inputs: list[float], outputs: list[float], expected: list[float]) -> None:
    assert delta_error(inputs, outputs, expected) == math.inf
    assert not judge_rows([math.inf], Limit(10**12, 10**12, 0, 0)).passed
    assert not judge_rows([math.nan], Limit(10**12, 10**12, 0, 0)).passed
    assert not judge_rows([], Limit(10**12, 10**12, 0, 0)).passed


def honest_bf16(chooser: random.Random) -> float:
    """Measured: median 0.0123, 99th percentile 0.019."""
    return 0.0123 * math.exp(chooser.gauss(0, 0.187))


def test_the_default_gates_separate_what_was_measured() -> None:
    chooser = random.Random(5)
    limit = default_limit("bfloat16", "bfloat16")
    for _ in range(500):
        assert judge_rows([honest_bf16(chooser) for _ in range(32)], limit).median < limit.median_ppm / 1e6
    for cheap in (0.030, 0.057, 0.25, 1.0):
        assert not judge_rows([cheap * math.exp(chooser.gauss(0, 0.05)) for _ in range(32)], limit).passed
    fine = default_limit("float32", "float32")
    assert judge_rows([1e-6] * 32, fine).passed and not judge_rows([0.012] * 32, fine).passed


def test_one_cheated_row_among_honest_ones_fails() -> None:
    limit = default_limit("bfloat16", "bfloat16")
    judgement = judge_rows([0.012] * 99 + [0.18], limit)
    assert not judgement.passed and "1 of 100" in judgement.why


def test_calibration_accepts_what_it_measured_and_refuses_the_cheater() -> None:
    chooser = random.Random(6)
    honest = [honest_bf16(chooser) for _ in range(500)]
    cheating = [0.030 * math.exp(chooser.gauss(0, 0.05)) for _ in range(500)]
    limit = calibrate(honest, ties=[0.01, 0.02], cheating=cheating)
    assert judge_rows(honest, limit).passed and not judge_rows(cheating, limit).passed
    assert limit.tie_ppm == 40_000 and limit.samples == 500
    assert 0.0123e6 < limit.median_ppm < 0.0195e6


def test_calibration_needs_rows_that_separate() -> None:
    for honest, cheating in (([0.01] * 19, []), ([0.01] * 30 + [math.inf], []), ([0.01] * 30, [0.0101] * 30)):
        with pytest.raises(ReceiptError):
            calibrate(honest, cheating=cheating)


def test_limits_are_stored_with_the_manifest() -> None:
    limit = Limit(17_000, 25_000, 100, 500)
    limits = ErrorLimits("ab" * 32, "smollm2-135m-instruct", {"bfloat16_bfloat16": limit})
    again = limits_untrusted(limits_bytes(limits))
    assert again == limits and again.get("bfloat16", "bfloat16") == limit
    assert again.get("float32", "float32") == default_limit("float32", "float32")
    for data in (b"", b"{}", b'{"format":"wanswarm-limits","version":2}', limits_bytes(limits).replace(b"17000", b"0")):
        with pytest.raises(ReceiptError):
            limits_untrusted(data)


def test_a_dtype_without_a_limit_is_named() -> None:
    with pytest.raises(ReceiptError) as caught:
        default_limit("int4", "float32")
    assert caught.value.refusal is Refusal.SHAPE and "int4" in str(caught.value)


def test_errors_are_judged_by_the_noise_of_each_row() -> None:
    """Rows differ by a hundred times in how much rounding disturbs them; honest stages must pass, int8 must not."""
    chooser = random.Random(3)
    limit = default_limit("bfloat16", "bfloat16")
    noise = [0.008 * math.exp(chooser.gauss(0, 0.3)) for _ in range(40)] + [0.6, 0.0001]
    honest = [own * math.exp(chooser.gauss(0, 0.1)) for own in noise]
    assert not judge_rows(honest, limit).passed  # one row in forty loses most of its delta to rounding
    assert judge_rows(at_usual_noise(honest, noise, limit), limit).passed
    int8 = [1.8 * error for error in honest]
    judgement = judge_rows(at_usual_noise(int8, noise, limit), limit)
    assert not judgement.passed and judgement.median * 1e6 > limit.median_ppm
    one = [*honest[:-1], 0.05]
    assert not judge_rows(at_usual_noise(one, noise, limit), limit).passed
    assert not judge_rows(at_usual_noise([math.inf], [0.01], limit), limit).passed


def test_luck_of_the_recomputation_does_not_tighten_the_gate() -> None:
    limit = default_limit("bfloat16", "bfloat16")
    assert judge_rows(at_usual_noise([0.001] * 8, [0.0] * 8, limit), limit).passed
    assert at_usual_noise([], [], limit) == []


def test_scores_of_a_tail() -> None:
    chooser = random.Random(9)
    honest = [chooser.gauss(0, 1.1) for _ in range(64)]
    assert judge_scores(honest, 64)[0] and not judge_scores([2.1 * score for score in honest], 64)[0]
    assert not judge_scores([*honest, math.nan], 65)[0] and not judge_scores([*honest, math.inf], 65)[0]


def test_a_text_in_a_loop_says_no_more_than_one_turn_of_it() -> None:
    """64 tokens of which two alternate: an honest tail's two errors, over and over."""

    def measured(tokens: Sequence[int]) -> Measured:
        found = Measured()
        found.add([TokenSample(9 + n, 0.0, (2.1, 1.3), token=token) for n, token in enumerate(tokens)])
        return found

    loop, text = measured([7, 8] * 32), measured(range(64))
    assert (loop.apart, text.apart) == (6.0, 128.0)  # the first has another one before it, or none
    assert loop.judge_scores()[0] and not text.judge_scores()[0]
    assert Measured().judge_scores() == (True, "")


def test_few_rows_over_a_coarse_format_are_judged_one_by_one() -> None:
    """Their errors scatter by a quarter and more: the median of few of them is no ground to refuse a stage."""
    chooser = random.Random(4)
    limit = default_limit("bfloat16", "int8")

    def share_passing(times: float, rows: int) -> float:
        def ratios() -> list[float]:
            return [times * math.exp(chooser.gauss(0, 0.28)) for _ in range(rows)]

        noise = [0.013] * rows
        found = (
            at_usual_noise([0.013 * ratio for ratio in ratios()], noise, limit, [0.0005] * rows) for _ in range(500)
        )
        return sum(judge_rows(errors, limit, coarse=True).passed for errors in found) / 500

    assert all(share_passing(1.0, rows) == 1.0 for rows in (1, 2, 5, 20, 90))
    assert all(share_passing(16.0, rows) == 0.0 for rows in (1, 2, 5, 20, 90))
    assert share_passing(1.8, 30) < 0.02
