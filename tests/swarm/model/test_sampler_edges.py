"""Ends of ranges in the sampler and in a frame's rows: what one small change of the code would get wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from swarm.base.errors import PeerError
from swarm.model.constraint import Constraint
from swarm.model.held import Allowed
from swarm.model.rows import Commits, Layout, Rows, check_untrusted, no_commits
from swarm.model.sampler import (
    MAX_MARGIN,
    Sampling,
    best_by_torch,
    divided,
    filtered,
    gumbel,
    masked,
    penalised,
    pick,
    shaped,
)
from swarm.model.shaping import Shaping

LAYOUT = Layout(16, 64)


def kept(logits: list[float], sampling: Sampling, static: bool) -> list[bool]:
    found = filtered(torch.tensor([logits]), sampling, static)
    assert all(x == y or x == -math.inf for x, y in zip(found[0].tolist(), logits, strict=True))
    return torch.isfinite(found)[0].tolist()


def test_noise_of_the_smallest_and_the_largest_word_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    class Words:
        def __init__(self, key: NDArray[np.uint64]) -> None:
            assert key.dtype == np.uint64 and key.tolist() == [2**64 - 1, 7]

        def random_raw(self, count: int) -> NDArray[np.uint64]:
            return np.array([0, 2**64 - 1], np.uint64)[:count]

    monkeypatch.setattr(np.random, "Philox", Words)
    noise = gumbel(2**64 - 1, 7, 2)
    assert noise.dtype == np.float32
    assert noise.tolist() == pytest.approx([-math.log(53 * math.log(2)), 53 * math.log(2)], rel=1e-6)


def test_neighbouring_large_seeds_have_noise_of_their_own() -> None:
    assert gumbel(2**63 + 1, 5, 8).tolist() != gumbel(2**63 + 2, 5, 8).tolist()


@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=4, max_size=4), min_size=1, max_size=5))
def test_the_best_on_a_device_are_the_best_of_the_host(rows: list[list[float]]) -> None:
    scores = torch.tensor(rows)
    tokens, margins = best_by_torch(scores)
    picked = pick(scores, list(range(len(rows))), Sampling(temperature=0.0))
    assert tokens == [one.token for one in picked] and margins == [one.margin for one in picked]


def test_a_token_without_rivals_leads_by_the_most_or_by_nothing() -> None:
    assert best_by_torch(torch.tensor([[1.0, -math.inf], [3.0, 1.0]])) == ([0, 0], [MAX_MARGIN, 2.0])
    assert best_by_torch(torch.tensor([[1.0]])) == ([0], [0.0])
    assert pick(torch.tensor([[1.0]]), [0], Sampling(temperature=0.0))[0].margin == 0.0


@pytest.mark.parametrize("static", [False, True])
def test_top_k_alone_drops_nothing_for_being_improbable(static: bool) -> None:
    assert kept([0.0, -300.0, -200.0, -400.0], Sampling(top_k=3), static) == [True, True, True, False]
    assert kept([0.0, -300.0, -200.0, -400.0], Sampling(top_k=4), static) == [True] * 4
    assert kept([0.0, -300.0, -200.0, -400.0], Sampling(top_k=0), static) == [True] * 4


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("top_p", "count"), [(0.5, 2), (0.5 + 1e-12, 3), (0.5 - 1e-12, 2), (0.25, 1)])
def test_top_p_at_the_border_of_equal_tokens(static: bool, top_p: float, count: int) -> None:
    assert kept([1.0] * 4, Sampling(top_p=top_p), static) == [True] * count + [False] * (4 - count)


def test_min_p_takes_out_what_it_drops() -> None:
    assert kept([0.0, -1.0, -0.5], Sampling(min_p=0.5), False) == [True, False, True]


def test_division_is_of_the_values_own_width() -> None:
    values = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert divided(values, 0.7).tolist() == [1 / 0.7, 2 / 0.7]


def test_a_penalty_divides_every_logit_above_zero() -> None:
    assert penalised(torch.tensor([[0.5, 2.0, -1.0, 3.0]]), [[0, 1, 2]], 2.0).tolist() == [[0.25, 1.0, -2.0, 3.0]]


def test_no_rows_have_no_masks() -> None:
    assert masked(torch.zeros(0, 5), []).shape == (0, 5)


def test_a_draw_sees_what_a_constraint_allows_and_what_the_answer_has() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    only = Sampling(temperature=0.0, constraint=Constraint("regex", "a", after=0))
    assert pick(logits, [0], only, allowed=[Allowed(-1, b"\x04")])[0].token == 2
    often = Sampling(temperature=0.0, shaping=Shaping(frequency=1.5))
    assert pick(logits, [3], often, answers=[[0]])[0].token == 1
    assert pick(logits, [3], often, answers=[[]])[0].token == 0
    assert shaped(logits, [3], often, answers=[[0, 1]]).tolist() == [[1.5, 0.5, 1.0]]


def test_what_a_draw_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="^a repetition penalty needs the contexts of the rows$"):
        pick(torch.zeros(1, 3), [0], Sampling(repetition_penalty=1.5))
    with pytest.raises(ValueError, match="^a constraint needs what it allows after each row$"):
        pick(torch.zeros(1, 3), [0], Sampling(constraint=Constraint("regex", "a", after=0)))


def drafted(slots: list[int], position: int) -> Rows:
    ancestors = np.zeros((len(slots), LAYOUT.scratch // 8), np.uint8)
    for row, slot in enumerate(slots):
        if slot < LAYOUT.scratch:
            ancestors[row, slot >> 3] |= 1 << (slot & 7)
    of = [np.full(len(slots), value, np.uint32) for value in (position, position)]
    token = np.ones(len(slots), np.int32)
    return Rows(np.array(slots, np.uint32), *of, ancestors, token, np.ones(len(slots), np.bool_))


def test_rows_that_a_session_cannot_hold_are_refused_in_words() -> None:
    good = drafted([0, 9], 3)
    check_untrusted(good, no_commits(), LAYOUT)
    cases: list[tuple[Rows, Commits, str]] = [
        (replace(good, token=good.token[:1]), no_commits(), "^arrays of a frame differ in length$"),
        (replace(good, ancestors=good.ancestors[:, :1]), no_commits(), "^arrays of a frame differ in length$"),
        (drafted([LAYOUT.slots], 63), no_commits(), "^slot 80 in a session of 80 slots$"),
        (drafted([20], 3), no_commits(), "^a committed row must write to the slot of its own position$"),
        (drafted([3, 3], 3), no_commits(), "^two rows of a frame write to one slot$"),
        (replace(good, ancestors=good.ancestors * 0), no_commits(), "^a row must see itself$"),
        (good, Commits(np.zeros(1, np.uint32), np.zeros(2, np.uint32)), "^commits are malformed$"),
        (good, Commits(*np.full((2, 1), 16, np.uint32)), "^a commit reaches outside the session's slots$"),
    ]
    for rows, commits, words in cases:
        with pytest.raises(PeerError, match=words):
            check_untrusted(rows, commits, LAYOUT)


def test_scratch_slots_come_in_eights() -> None:
    assert Layout(16, 1).contradiction() == ""
    assert Layout(12, 1).contradiction() == "scratch slots in eights, found 12"
