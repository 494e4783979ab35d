"""What is done to logits before they are drawn: by its definition, on any vocabulary, and bounded."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import ModelError, UsageError
from swarm.model.held import Allowed
from swarm.model.sampler import LEAST_LOGPROB, MAX_MARGIN, Sampling, pick, shaped
from swarm.model.shaped_logits import held_open, shifted
from swarm.model.shaping import Shaping

VOCAB = 12
TOKENS = st.integers(0, VOCAB - 1)
AMOUNTS = st.floats(-2, 2, width=32)


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=VOCAB, max_size=VOCAB),
    st.lists(TOKENS, max_size=20),
    AMOUNTS,
    AMOUNTS,
    st.dictionaries(TOKENS, st.floats(-100, 100, width=32), max_size=5),
    st.sets(TOKENS, min_size=1),
)
def test_it_does_what_openai_says_and_a_part_of_the_vocabulary_sees_the_same(
    values: list[float], answer: list[int], presence: float, frequency: float, bias: dict[int, float], part: set[int]
) -> None:
    shaping = Shaping(presence, frequency, tuple(sorted(bias.items())))
    logits = torch.tensor([values])
    before = logits.clone()
    found = shifted(logits, [answer], shaping)
    count = Counter(answer)
    for token in range(VOCAB):
        expected = values[token] - count[token] * frequency - (count[token] > 0) * presence + bias.get(token, 0.0)
        assert float(found[0, token]) == pytest.approx(expected, abs=1e-4)
    assert torch.equal(logits, before)
    ids = torch.tensor(sorted(part))
    few = shifted(logits[:, ids], [answer], shaping, ids)
    assert torch.allclose(few[0], found[0, ids], atol=1e-5)


def test_ends_wait_unless_nothing_else_may_come() -> None:
    shaping = Shaping(least=3, ends=(1, 4), after=10)
    logits = torch.tensor([[0.0, 9.0, 1.0, 2.0, 8.0]] * 3)
    found = held_open(logits, [12, 13, 10], shaping)
    assert torch.isinf(found[0, [1, 4]]).all() and torch.equal(found[1], logits[1]) and torch.isinf(found[2, 1])
    only = torch.full((1, 5), -math.inf)
    only[0, 4] = 1.0
    assert torch.equal(held_open(only, [10], shaping), only)
    sampling = Sampling(shaping=shaping, logprobs=2)
    (picked,) = pick(logits[:1], [10], sampling)
    assert picked.token == 3
    (picked,) = pick(torch.tensor([[-math.inf, 1.0, -math.inf, -math.inf, -math.inf]]), [10], sampling)
    assert picked.token == 1 and picked.top[1][1] == LEAST_LOGPROB


def test_a_constraint_comes_before_the_least_length() -> None:
    from swarm.model.constraint import Constraint

    sampling = Sampling(constraint=Constraint("regex", "a", after=10), shaping=Shaping(least=3, ends=(1,), after=10))
    logits = torch.zeros(2, 5)
    found = shaped(logits, [10, 10], sampling, allowed=[Allowed(1), Allowed(-1, b"\x06")])
    assert torch.isfinite(found).tolist() == [[False, True, False, False, False], [False, False, True, False, False]]


def test_given_tokens_are_found_as_likely_as_they_are() -> None:
    sampling = Sampling(temperature=1.0, shaping=Shaping(given=(2, 0), after=5))
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.0, 0.0, 99.0]])
    one, two, three = pick(logits, [5, 6, 7], sampling)
    assert (one.token, two.token, three.token) == (2, 0, 2) and one.margin == two.margin == MAX_MARGIN > three.margin
    assert two.logprob == pytest.approx(float(logits[1].log_softmax(-1)[0]))
    with pytest.raises(ModelError, match="given tokens below 3"):
        pick(logits[:1], [5], Sampling(shaping=Shaping(given=(3,), after=5)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"presence": 2.5},
        {"frequency": math.nan},
        {"bias": ((3, 101.0),)},
        {"bias": ((3, 1.0), (3, 2.0))},
        {"bias": ((4, 1.0), (3, 2.0))},
        {"bias": tuple((token, 1.0) for token in range(1025))},
        {"ends": (2, 1)},
        {"given": (-1,)},
        {"given": (0,) * 65_537},
        {"least": -1},
        {"after": 1.5},
    ],
    ids=str,
)  # fmt: skip
def test_what_it_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Shaping(**wrong)  # type: ignore[arg-type]


def test_given_tokens_and_a_constraint_exclude_each_other() -> None:
    from swarm.model.constraint import Constraint

    with pytest.raises(UsageError, match="cannot be held to a constraint"):
        Sampling(constraint=Constraint("regex", "a"), shaping=Shaping(given=(1,)))
