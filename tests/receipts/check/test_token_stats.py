"""The score of a run's tokens: what it counts, what it says, and that a refused run has one, too."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts.check.recompute import Limit, default_limit
from receipts.check.replay import Replayed
from receipts.check.report import text_report
from receipts.check.token_stats import CLIP, FEW, HONEST, OTHER, token_stats
from receipts.check.verify import Options, verify
from receipts.format.errors import Refusal

LIMIT = Limit(1, 1, 150_000, 0)


class Found:
    """A replayer that finds these gaps."""

    def __init__(self, *gaps: float) -> None:
        self.gaps = gaps

    def replay(self, order: Any, prompt: Sequence[int], tokens: Sequence[int]) -> Replayed:
        best = [token + (gap != 0) for token, gap in zip(tokens, self.gaps, strict=True)]
        return Replayed(best, self.gaps)


@given(st.lists(st.floats(0, 100, allow_subnormal=False) | st.sampled_from([math.inf, math.nan]), max_size=80))
def test_the_score_is_a_bounded_mean(gaps: list[float]) -> None:
    stats = token_stats(gaps, LIMIT)
    assert 0 <= stats.score <= CLIP and stats.tokens == len(gaps) and stats.differing <= len(gaps)
    assert token_stats([*gaps, math.inf], LIMIT).score >= stats.score
    assert (stats.score == 0) == (stats.differing == 0)


@pytest.mark.parametrize(
    ("gaps", "words"),
    [
        ([0.0] * 100, "as honest rounding leaves it"),
        ([0.0] * 95 + [0.05] * 5, "as honest rounding leaves it"),
        ([0.0] * 70 + [0.05] * 30, "not told apart from int8"),
        ([0.0] * 50 + [2.0] * 50, "another model, precision, seed or sampler"),
        ([0.0] * (FEW - 1), "say little"),
    ],
)
def test_what_a_score_means_is_said_in_words(gaps: list[float], words: str) -> None:
    assert words in token_stats(gaps, LIMIT).meaning


def test_near_ties_each_within_the_gate_add_up() -> None:
    """A quarter of the tokens just within the gate pass one by one; together they are no honest run's."""
    gate = default_limit("bfloat16", "bfloat16").tie_ppm / 1e6
    assert HONEST < token_stats([gate * 0.5] * 25 + [0.0] * 75, LIMIT).score < OTHER


def test_replay_prints_one_line_and_json_has_its_figures(rings: Any) -> None:
    verdict = verify(rings("open").receipt, Options(replayer=Found(0, 0, 0, 0, 0)))
    (line,) = [line for line in text_report(verdict, 200).splitlines() if "token statistics" in line]
    assert "score 0.000, 0/5 tokens differ" in line
    (claim,) = [c for c in json.loads(json.dumps(verdict.as_json()))["claims"] if c["subject"] == "token statistics"]
    assert claim["figures"] == {"score": 0.0, "differing": 0, "tokens": 5}


def test_a_refused_run_has_a_score_too(rings: Any) -> None:
    verdict = verify(rings("open").receipt, Options(replayer=Found(0, 9.0, 0, 0, 0)))
    assert verdict.refusal is Refusal.REPLAY
    (claim,) = [claim for claim in verdict.claims if claim.subject == "token statistics"]
    assert claim.figures["differing"] == 1 and claim.figures["score"] == CLIP / 5
