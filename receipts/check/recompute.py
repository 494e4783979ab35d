"""Judging recomputation: how far a stage's output may be from an honest one, and when a replayed token is wrong.

A stage's work on one row is the delta it adds: output minus input of its block. The error is the relative L2 distance
of the claimed delta from a float32 recomputation of it. Honest bfloat16 has medians near 0.0125, int8 weights 0.03,
int4 0.2, no compute 1.0; so a gate on the median separates a stage that always cheats, and a gate on each row one that
cheats now and then. Limits are calibrated per model, dtype and wire format, and stored with the model's manifest.
"""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from receipts.format.canonical import emit, parse_untrusted
from receipts.format.codec import Count, Digest, Many, Name, Range, decode_untrusted, encode
from receipts.format.errors import ReceiptError, Refusal

MILLION = 1_000_000
MEDIAN_MARGIN = 1.4
"""How far above the honest median the gate on it lies."""
LEAST_NOISE = 1 / 8
"""Noise taken for granted, of what is usual: a recomputation that agrees by luck must not tighten a gate to nothing."""
COARSE_SCATTER = 1.7
"""Of the median of n rows over a coarse format, times the root of n: four and a half deviations of honest ones."""
LEAST_GRAINS = 6.0
"""Noise taken for granted, in steps of a coarse wire format: fewer of them differ by chance alone."""


@dataclass(frozen=True)
class Limit:
    """Gates for one dtype and wire format, in millionths of the delta's norm; `tie_ppm` in millionths of a score.

    `median_ppm` bounds the median over the rows of one stage, `row_ppm` every single row. A replayed token may differ
    where the receipt's token scores less than `tie_ppm` below the best. `samples` rows were measured.
    """

    median_ppm: Annotated[int, Range(1)]
    row_ppm: Annotated[int, Range(1)]
    tie_ppm: Count
    samples: Count


@dataclass(frozen=True)
class ErrorLimits:
    """Limits of one model, by "dtype/wire". The file is stored beside the manifest."""

    manifest: Digest
    model: Name
    limits: Annotated[Mapping[str, Limit], Many(0, 64)]

    def get(self, dtype: str, wire: str) -> Limit:
        """The measured limit, else the conservative one for that dtype."""
        return self.limits.get(limit_name(dtype, wire)) or default_limit(dtype, wire)


def limit_name(dtype: str, wire: str) -> str:
    """Name of one dtype and wire format in a limits file."""
    return f"{dtype}_{wire}".lower()


# Until a model is calibrated: wide enough for any honest stage that was measured. q8: weights as they are stored times
# rows rounded to bytes, which outweighs what is lost on the wire.
_COMPUTE = {
    "float32": (200, 2_000, 2_000),
    "bfloat16": (18_000, 26_000, 150_000),
    "float16": (6_000, 12_000, 50_000),
    "q8": (55_000, 110_000, 800_000),
}
_WIRE = {"float32": 1, "bfloat16": 2, "float16": 1}
_COARSE_TIES = {"int8": 4, "fp8": 8}
_COARSE_ROW = 10 / 3
"""Over coarse formats a row's error is a sum of few steps: single rows lie further from the median."""


def default_limit(dtype: str, wire: str) -> Limit:
    """Limits for a model that nobody calibrated. Raises ReceiptError(SHAPE) for a dtype without one."""
    if dtype not in _COMPUTE:
        raise ReceiptError(Refusal.SHAPE, f"no recompute limit for dtype {dtype!r}")
    wide = _COMPUTE["bfloat16"] if dtype == "float32" and wire != "float32" else _COMPUTE[dtype]
    if wire in _COARSE_TIES:
        return Limit(wide[0], int(wide[0] * _COARSE_ROW), wide[2] * _COARSE_TIES[wire], 0)
    scale = _WIRE.get(wire, 8) if wire != dtype and dtype != "q8" else 1
    return Limit(wide[0] * scale, wide[1] * scale, wide[2] * scale, 0)


def limits_bytes(limits: ErrorLimits) -> bytes:
    return emit({"format": "wanswarm-limits", "version": 1} | encode(limits)) + b"\n"


def limits_untrusted(data: bytes) -> ErrorLimits:
    """Read a limits file. Raises ReceiptError."""
    value = parse_untrusted(data, 1 << 20)
    if not isinstance(value, dict) or value.pop("format", None) != "wanswarm-limits" or value.pop("version", None) != 1:
        raise ReceiptError(Refusal.VERSION, "expected wanswarm-limits version 1")
    return decode_untrusted(ErrorLimits, value, "limits")


def delta_error(inputs: Sequence[float], outputs: Sequence[float], expected: Sequence[float]) -> float:
    """Relative L2 error of one row's delta: |outputs - expected| / |expected - inputs|, all of length hidden.

    `inputs` entered the block, `outputs` is what the stage sent, `expected` a recomputation. Infinite when anything is
    not finite, so that NaN can never pass a gate.
    """
    if not len(inputs) == len(outputs) == len(expected):
        return math.inf
    wrong = math.dist(outputs, expected)
    work = math.dist(expected, inputs)
    if not math.isfinite(wrong) or not math.isfinite(work):
        return math.inf
    return wrong / work if work > 0 else (0.0 if wrong == 0 else math.inf)


def coarse_error(inputs: Sequence[float], outputs: Sequence[float], expected: Sequence[float]) -> float:
    """As `delta_error`, by sums of differences instead of squares: for rows that crossed in a coarse format.

    Where two numbers are put on a grid, their difference is in the mean what it was before; its square is not.
    """
    if not len(inputs) == len(outputs) == len(expected):
        return math.inf
    wrong = sum(map(abs, map(operator.sub, outputs, expected)))
    work = sum(map(abs, map(operator.sub, expected, inputs)))
    if not math.isfinite(wrong) or not math.isfinite(work):
        return math.inf
    return wrong / work if work > 0 else (0.0 if wrong == 0 else math.inf)


def at_usual_noise(
    errors: Sequence[float], noise: Sequence[float], limit: Limit, grains: Sequence[float] = ()
) -> list[float]:
    """Errors of rows as they would be if rounding disturbed every row as much as the limit's usual one.

    How much rounding disturbs a row depends on the row and on the layers, by a factor of ten and more; `noise` is the
    error that an honest stage has on each row, by the verifier's own computation. A row counts as at least as noisy
    as half of the others are: what is left is the factor by which a stage errs more than it should. `grains`: the error
    that one step of a coarse wire format makes, by row; a row is at least as noisy as a few of them.
    """
    if not noise:
        return []
    usual = limit.median_ppm / MEDIAN_MARGIN / MILLION
    least = max(statistics.median(noise), LEAST_NOISE * usual)
    floors = [max(least, LEAST_GRAINS * grain) for grain in grains] or [least] * len(noise)
    return [usual * error / max(own, floor) for error, own, floor in zip(errors, noise, floors, strict=True)]


@dataclass(frozen=True)
class StageJudgement:
    """What the opened rows of one stage show. `median` and `worst` are relative errors of the delta."""

    rows: int
    median: float
    worst: float
    passed: bool
    why: str


def judge_scores(scores: Sequence[float], apart: float) -> tuple[bool, str]:
    """Whether a tail's logprobs and margins are those of an honest computation, and the figures in words.

    A score is an error over the standard deviation that honest rounding gives it, so their root mean square is little
    over 1: 1.2 in the median of honest tails, as one computation estimates what another should have, and 1.7 with int8
    weights. The gate leaves room for chance, since few scores say little: the spread of honest ones is 0.9 over the
    root of how many of them are `apart`. Where a text repeats itself, so do its errors: of honest tails of the default
    model whose 64 tokens were two to twenty in turn, figures lay between 0.7 and 1.6, as those of four scores do.
    """
    rms = math.sqrt(sum(score * score for score in scores) / len(scores))
    gate = max(1.45, 1.22 + 4.2 / math.sqrt(max(1.0, apart)))
    return rms <= gate, f"scores off by {rms:.2f} times honest rounding (gate {gate:.2f})"


def judge_rows(errors: Sequence[float], limit: Limit, coarse: bool = False) -> StageJudgement:
    """Whether the rows opened at one stage are an honest computation under `limit`.

    `coarse`: they crossed in a coarse format, where single rows scatter so that the median of few says little.
    """
    if not errors:
        return StageJudgement(0, 0.0, 0.0, False, "no row was opened")
    median, worst = statistics.median(errors), max(errors)
    over = sum(not error * MILLION <= limit.row_ppm for error in errors)
    gate = float(limit.median_ppm)
    if coarse:
        gate *= max(1.0, (1 + COARSE_SCATTER / math.sqrt(len(errors))) / MEDIAN_MARGIN)
    why = f"median {median:.5f} (gate {gate / MILLION:.5f})"
    if over:
        why = f"{over} of {len(errors)} rows over {limit.row_ppm / MILLION:.5f}, worst {worst:.5f}; {why}"
    passed = not over and median * MILLION <= gate
    return StageJudgement(len(errors), median, worst, passed, why)


def calibrate(honest: Sequence[float], ties: Sequence[float] = (), cheating: Sequence[float] = ()) -> Limit:
    """A limit from measured errors of honest rows, score gaps at honest disagreements, and rows of a cheaper model.

    The median gate lies 1.4 times above the honest median, or half-way (geometrically) to the cheater's when that is
    nearer; the row gate a third above the worst honest row. Raises ReceiptError(SHAPE) with fewer than 20 rows.
    """
    if len(honest) < 20 or not all(math.isfinite(error) for error in honest):
        raise ReceiptError(Refusal.SHAPE, f"calibration needs 20 finite rows, found {len(honest)}")
    median = statistics.median(honest)
    gate = MEDIAN_MARGIN * median
    if cheating:
        gate = min(gate, math.sqrt(median * statistics.median(cheating)))
    if cheating and gate <= 1.05 * median:
        raise ReceiptError(Refusal.SHAPE, "honest and cheating rows do not separate; no gate can be set")
    tie = 2 * max(ties, default=0.0)
    return Limit(
        max(1, math.ceil(gate * MILLION)),
        max(1, math.ceil(max(honest) * 4 / 3 * MILLION)),
        math.ceil(tie * MILLION),
        len(honest),
    )
