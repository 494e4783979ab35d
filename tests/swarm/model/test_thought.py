"""Limits of thoughts: what they dictate, against a model that writes anything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draft.tree import TokenTree
from swarm.base.errors import UsageError
from swarm.model.sampler import MAX_MARGIN, Sampling, pick
from swarm.model.shaping import Shaping
from swarm.model.thought import ThoughtLimit
from swarm.ring.guide import DictatedGuide

OPEN, CLOSE, OTHER = 1, 2, 0
MARKS = st.sampled_from([((OPEN,), (CLOSE,)), ((OPEN, OPEN), (CLOSE, CLOSE)), ((OPEN, 3), (CLOSE, 4)), ((), (CLOSE,))])


def thoughts(answer: list[int], limit: ThoughtLimit) -> tuple[int, bool]:
    """(tokens inside thoughts, whether one is open), read from left to right."""
    inside, spent, at = limit.opened, 0, 0
    while at < len(answer):
        mark = limit.closes if inside else limit.opens
        if mark and tuple(answer[at : at + len(mark)]) == mark:
            at, inside = at + len(mark), not inside
        else:
            at, spent = at + 1, spent + inside
    return spent, inside


@given(MARKS, st.integers(0, 6), st.booleans(), st.lists(st.integers(0, 4), max_size=40))
def test_no_answer_thinks_longer_than_it_may(
    marks: tuple[tuple[int, ...], tuple[int, ...]], most: int, opened: bool, wanted: list[int]
) -> None:
    """Whatever the model wants to write: a thought is over after so many tokens and its closing mark."""
    opens, closes = marks
    limit = ThoughtLimit(most, closes, opens, opened or not opens)
    answer: list[int] = []
    for token in wanted:
        due = limit.due(answer)
        answer.append(token if due < 0 else due)
        spent, inside = thoughts(answer, limit)
        part = len(closes) - 1  # of a closing mark that is being written
        assert spent <= most + part
        assert spent < most or not inside or limit.due(answer) >= 0


@given(MARKS, st.integers(0, 6), st.booleans(), st.lists(st.integers(0, 4), max_size=20))
def test_what_is_dictated_is_part_of_the_closing_mark_and_comes_within_an_open_thought(
    marks: tuple[tuple[int, ...], tuple[int, ...]], most: int, opened: bool, answer: list[int]
) -> None:
    limit = ThoughtLimit(most, marks[1], marks[0], opened or not marks[0])
    due = limit.due(answer)
    assert due == -1 or (due in limit.closes and thoughts(answer, limit)[1])


def test_by_hand() -> None:
    own = ThoughtLimit(2, (CLOSE,), (OPEN,))
    assert [own.due(answer) for answer in ([], [OPEN], [OPEN, 0], [OPEN, 0, 0], [OPEN, 0, 0, CLOSE], [0, 0, 0, 0])] == [
        -1, -1, -1, CLOSE, -1, -1,
    ]  # fmt: skip
    assert own.due([OPEN, 0, CLOSE, OPEN, 0]) == CLOSE  # both thoughts together
    assert ThoughtLimit(0, (CLOSE,), (OPEN,)).due([OPEN]) == CLOSE
    prompt = ThoughtLimit(3, (CLOSE, 4), (), True)
    assert [prompt.due([0] * 3), prompt.due([0] * 3 + [CLOSE]), prompt.due([0] * 3 + [CLOSE, 4])] == [CLOSE, 4, -1]


def test_the_mark_is_not_drawn_and_its_likelihood_is_the_models() -> None:
    sampling = Sampling(shaping=Shaping(thought=ThoughtLimit(1, (CLOSE,), (), True), after=5), logprobs=1)
    logits = torch.tensor([[4.0, 1.0, 0.0], [4.0, 1.0, 0.0]])
    free, dictated = pick(logits, [5, 6], sampling, answers=[[], [0]])
    assert (free.token, dictated.token, dictated.margin) == (0, CLOSE, MAX_MARGIN)
    assert dictated.logprob == pytest.approx(float(logits[1].log_softmax(-1)[CLOSE]), abs=1e-5)
    with pytest.raises(ValueError, match="needs the answer"):
        pick(logits[:1], [5], sampling)


def test_a_guide_knows_the_mark_before_any_tail() -> None:
    guide = DictatedGuide(Shaping(thought=ThoughtLimit(2, (CLOSE, 4), (OPEN,)), after=4), 8)
    tree = TokenTree(7, 3, 32)
    for token in (OPEN, 0, 0):
        guide.advanced(token)
    tip = guide.extend(tree, tree.root, 0.01)
    assert [node.token for node in tree.live.values()][1:] == [CLOSE, 4] and tip is not None
    assert guide.after(tree, tip).forced < 0


def test_what_is_no_limit_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="limit of a thought's tokens from 0"):
        ThoughtLimit(-1, (CLOSE,), (OPEN,))
    with pytest.raises(UsageError, match="closes a thought"):
        ThoughtLimit(1, (), (OPEN,))
    with pytest.raises(UsageError, match="mark that opens"):
        ThoughtLimit(1, (CLOSE,))
