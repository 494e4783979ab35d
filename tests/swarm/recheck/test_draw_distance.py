"""How far a token is from being the one drawn, against the sampler itself."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from swarm.model.sampler import Sampling, pick
from swarm.recheck.draw_distance import token_gaps
from swarm.recheck.tail import at_least_usual, rounding, scores_of

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.4]),
    top_k=st.sampled_from([0, 5]),
    min_p=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**63 - 1),
)
VOCAB = 40


def logits_of(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


@given(SAMPLINGS, st.integers(0, 10**6), st.integers(0, 5000))
def test_what_the_sampler_draws_has_no_gap(sampling: Sampling, seed: int, position: int) -> None:
    logits = logits_of(seed)
    (drawn,) = pick(logits, [position], sampling)
    assert token_gaps(logits, [position], [drawn.token], sampling) == ([drawn.token], [0.0])


@given(SAMPLINGS, st.integers(0, 10**6), st.integers(0, 5000), st.floats(0.001, 0.05))
@example(Sampling(temperature=2.0, min_p=0.1, seed=0), 2215, 0, 0.03125)  # a token at the edge of min-p
def test_errors_of_the_logits_bound_the_gap(sampling: Sampling, seed: int, position: int, size: float) -> None:
    """A token drawn from logits that are off by at most `size` each is never farther off than rounding can explain."""
    logits = logits_of(seed)
    noise = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed + 1)) * 2 - 1
    (drawn,) = pick(logits + size * noise, [position], sampling)
    _, (gap,) = token_gaps(logits, [position], [drawn.token], sampling)
    assert gap <= 2.2 * size + 1e-4


@given(st.integers(0, 10**6), st.floats(0.1, 3.0))
def test_the_gap_is_in_logits_at_every_temperature(seed: int, temperature: float) -> None:
    logits = logits_of(seed)
    order = logits[0].argsort(descending=True)
    _, (greedy,) = token_gaps(logits, [1], [int(order[1])], Sampling())
    assert math.isclose(greedy, float(logits[0, order[0]] - logits[0, order[1]]), abs_tol=1e-5)
    sampling = Sampling(temperature=temperature, seed=seed)
    (drawn,) = pick(logits, [1], sampling)
    worst = [token_gaps(logits, [1], [token], sampling)[1][0] for token in range(VOCAB)]
    assert min(worst) == worst[drawn.token] == 0.0
    assert all(gap > 0 for token, gap in enumerate(worst) if token != drawn.token)


def test_no_token_outside_the_vocabulary_passes() -> None:
    assert token_gaps(logits_of(1), [1], [VOCAB], Sampling())[1] == [math.inf]


def test_a_penalty_counts() -> None:
    logits = logits_of(3)
    best = int(logits.argmax())
    sampling = Sampling(repetition_penalty=50.0)
    (other,), (gap,) = token_gaps(logits, [4], [best], sampling, [[best]])
    assert other != best and gap > 0


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, seed=4)], ids=["greedy", "sampled"])
def test_scores_are_near_one_for_rounding_and_grow_with_the_error(sampling: Sampling) -> None:
    torch.manual_seed(0)
    exact = torch.randn(400, 200) * 3
    positions = list(range(1, 401))
    disturbed = rounding(exact, exact + 0.01 * torch.randn_like(exact))

    def spread(error: float) -> float:
        said = exact + error * torch.randn_like(exact)
        picked = pick(said, positions, sampling)
        drawn = [(p, d.token, d.margin, d.logprob) for p, d in zip(positions, picked, strict=True)]
        scores = [score for row in scores_of(exact, disturbed, drawn, sampling) for score in row]
        return math.sqrt(sum(score * score for score in scores) / len(scores))

    assert 0.85 < spread(0.01) < 1.15
    assert 1.8 < spread(0.02) < 2.3
    assert spread(0.2) > 15


def test_margins_are_left_out_where_filters_decide_them() -> None:
    logits, sampling = logits_of(5), Sampling(temperature=1.0, top_k=1, seed=2)
    (drawn,) = pick(logits, [3], sampling)
    found = scores_of(logits, torch.zeros(1), [(3, drawn.token, drawn.margin, drawn.logprob)], sampling)
    assert len(found[0]) == 1 and abs(found[0][0]) < 0.1


def test_a_row_that_was_rounded_well_by_luck_counts_as_a_usual_one() -> None:
    frames = [torch.tensor([0.1, 2.0]), torch.tensor([1.0]), torch.tensor([0.0, 3.0])]
    assert [frame.tolist() for frame in at_least_usual(frames)] == [[1.0, 2.0], [1.0], [1.0, 3.0]]
    assert at_least_usual([]) == [] and at_least_usual([torch.zeros(0)])[0].tolist() == []


def test_a_frame_that_wants_no_logits_has_no_rounding() -> None:
    nothing = torch.zeros(0, 311)
    assert rounding(nothing, nothing).shape == (0,)
    assert [len(one) for one in at_least_usual([rounding(nothing, nothing), torch.tensor([0.1, 0.2])])] == [0, 2]
