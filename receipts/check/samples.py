"""Opened rows and answers beside a verifier's own, and what they show together: equal bits, or how large errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from receipts.check.recompute import (
    Limit,
    StageJudgement,
    at_usual_noise,
    coarse_error,
    delta_error,
    judge_rows,
    judge_scores,
)

EXACT, CALIBRATED = "EXACT", "WITHIN CALIBRATION"
"""How a stage's rows were found right: equal to the last bit, or within the limits of honest rounding."""


class Bits(Enum):
    """One opened row against the verifier's own, computed by kernels of the fingerprint that the stage signed."""

    NOT_COMPARED = "not compared"
    """The stage signed no fingerprint, or one that the verifier's machine does not have."""
    EQUAL = "equal"
    OTHER = "other"
    """They differ, which rows of these kernels may do that were computed in other company: limits decide."""
    WRONG = "wrong"
    """They differ, and the bits of such a row depend on nothing but what came in: it was computed otherwise."""


@dataclass(frozen=True)
class RowSample:
    """One opened row of a middle or head stage: block input, output as sent, and the verifier's own output.

    `expected` is computed in float32. `honest` is what the verifier's own stage sends when it computes and quantises
    as the order says; empty where that is float32 too. Its error says how much rounding disturbs this very row.

    `grain` is None but for a wire format whose steps are larger than rounding. There `outputs` and `honest` differ from
    `expected` by what they do once all are put on the format's grid, and `grain` is the error that one step makes.
    """

    position: int
    inputs: Sequence[float]
    outputs: Sequence[float]
    expected: Sequence[float]
    honest: Sequence[float] = ()
    grain: float | None = None
    bits: Bits = Bits.NOT_COMPARED


@dataclass(frozen=True)
class TokenSample:
    """One opened answer of the tail: by how much logits must be off to draw its token (0: it is the verifier's).

    `scores` are the errors of what else it says of the token (logprob, margin), each over the standard deviation that
    honest rounding gives it.
    """

    position: int
    gap: float
    scores: Sequence[float] = ()
    bits: Bits = Bits.NOT_COMPARED
    """Of token, margin and logprob together."""
    token: int = -1
    """The token that it is about."""


class Measured:
    """Errors of samples, collected until they are judged."""

    def __init__(self) -> None:
        self.errors: list[float] = []
        self.noise: list[float] = []
        self.grains: list[float] = []
        self.gaps: list[float] = []
        self.scores: list[float] = []
        self.drew: list[tuple[int, int]] = []
        """Position and token of every answer."""
        self.bits: list[Bits] = []
        self.wrong: list[int] = []
        """Positions of rows that differ where none may: of the frames in the order in which they are added."""

    @property
    def exact(self) -> bool:
        """Whether every one is equal to the last bit."""
        return bool(self.bits) and all(bits is Bits.EQUAL for bits in self.bits)

    def add(self, samples: Sequence[RowSample | TokenSample]) -> None:
        for sample in samples:
            self.bits.append(sample.bits)
            if sample.bits is Bits.WRONG:
                self.wrong.append(sample.position)
            if isinstance(sample, TokenSample):
                self.gaps.append(sample.gap)
                self.scores += sample.scores
                self.drew.append((sample.position, sample.token))
                continue
            error_of = delta_error if sample.grain is None else coarse_error
            self.errors.append(error_of(sample.inputs, sample.outputs, sample.expected))
            if sample.honest:
                self.noise.append(error_of(sample.inputs, sample.honest, sample.expected))
            if sample.grain is not None:
                self.grains.append(sample.grain)

    @property
    def apart(self) -> float:
        """How many of the scores say something of their own: a text that goes round in a loop errs alike each time.

        Answers count once for each pair of a token and the one before it.
        """
        tokens = dict(self.drew)
        pairs = {(tokens.get(position - 1), token) for position, token in self.drew}
        return len(self.scores) * len(pairs) / max(1, len(self.drew))

    def judge_scores(self) -> tuple[bool, str]:
        """Of the answers: whether what the tail says of its tokens is right, and the figures in words."""
        return judge_scores(self.scores, self.apart) if self.scores else (True, "")

    def judge(self, limit: Limit) -> StageJudgement:
        """Of the rows."""
        rows = at_usual_noise(self.errors, self.noise, limit, self.grains) if self.noise else self.errors
        return judge_rows(rows, limit, coarse=bool(self.grains))
