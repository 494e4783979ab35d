from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from swarm.base.errors import UsageError
from swarm.model.sampler import Sampling, divided, filtered, gumbel, penalised, pick

LOGITS = hnp.arrays(
    np.float32, st.integers(2, 12), elements=st.floats(-8, 8, width=16, allow_subnormal=False), unique=True
)


def row(values: object) -> torch.Tensor:
    return torch.tensor(np.array(values, np.float32))[None]


def test_greedy_takes_the_largest_and_says_by_how_much() -> None:
    (picked,) = pick(row([1.0, 4.0, 3.5]), [7], Sampling(logprobs=2))
    assert picked.token == 1
    assert picked.margin == pytest.approx(0.5)
    assert picked.logprob == pytest.approx(4 - math.log(sum(map(math.exp, (1, 4, 3.5)))), abs=1e-5)
    assert [token for token, _ in picked.top] == [1, 2]
    assert picked.top[0][1] == pytest.approx(picked.logprob)


@pytest.mark.parametrize("temperature", [0.0, 0.25, 1.0, 4.0])
def test_log_probabilities_are_the_models_whatever_the_temperature(temperature: float) -> None:
    """Before temperature and filters: two users who draw differently are told the same of one token."""
    values = [1.0, 4.0, 3.5, -2.0]
    norm = math.log(sum(map(math.exp, values)))
    for seed in range(8):
        (picked,) = pick(row(values), [7], Sampling(temperature, top_p=0.99, top_k=3, seed=seed, logprobs=4))
        assert picked.logprob == pytest.approx(values[picked.token] - norm, abs=1e-5)
        assert {token: pytest.approx(values[token] - norm, abs=1e-5) for token in range(4)} == dict(picked.top)


def test_of_equal_logits_the_smaller_id_wins() -> None:
    assert pick(row([0.0, 2.0, 2.0]), [1], Sampling())[0].token == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = row([0.0, 1.0, 2.0, -1.0, 0.5, 1.5])
    n = 6000
    picks = pick(logits.expand(n, -1), range(n), Sampling(temperature=temperature, seed=11))
    counts = np.bincount([p.token for p in picks], minlength=6)
    expected = (logits[0] / temperature).softmax(-1).double().numpy() * n
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < 30.9  # 5 degrees of freedom: exceeded by one seed in 100,000


def test_a_token_depends_on_seed_and_position_alone() -> None:
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=5)
    together = pick(logits, range(20, 28), sampling)
    alone = [pick(logits[i : i + 1], [20 + i], sampling)[0] for i in range(8)]
    assert [p.token for p in together] == [p.token for p in alone]
    assert [p.token for p in together] != [p.token for p in pick(logits, range(28, 36), sampling)]
    assert not np.array_equal(gumbel(5, 20, 50), gumbel(6, 20, 50))


def test_the_noise_is_the_same_for_ever() -> None:
    # From the raw words of Philox4x64-10 with key (42, 7) and counter 1, as numpy gives them.
    words = np.random.Philox(key=np.array([42, 7], np.uint64)).random_raw(4)
    expected = [-math.log(-math.log(((int(w) >> 12) + 0.5) / 2**52)) for w in words]
    assert gumbel(42, 7, 4).tolist() == pytest.approx(expected, rel=1e-6)
    assert gumbel(42, 7, 4).tolist() == pytest.approx(GOLDEN, rel=1e-6)
    assert np.array_equal(gumbel(42, 7, 4), gumbel(42, 7, 9)[:4])
    assert np.isfinite(gumbel(2**63 - 1, 2**32 - 1, 100_000)).all()


GOLDEN = [0.840081, 2.101264, 0.525819, 3.033033]


def reference(logits: list[float], sampling: Sampling) -> set[int]:
    """Tokens that survive the filters, spelled out."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if sampling.top_k:
        order = order[: sampling.top_k]
    weights = [math.exp(logits[i] - max(logits)) for i in order]
    kept, mass = [], 0.0
    for token, weight in zip(order, weights, strict=True):
        if kept and mass >= sampling.top_p:
            break
        kept.append(token)
        mass += weight / sum(weights)
    if sampling.top_p == 1:
        kept = order
    best = max(logits)
    return {i for i in kept if sampling.min_p == 0 or math.exp(logits[i] - best) >= sampling.min_p}


@given(
    LOGITS, st.integers(0, 6), st.sampled_from([0.05, 0.3, 0.71, 0.93, 1.0]), st.sampled_from([0.0, 0.013, 0.37, 1.0])
)
def test_filters_keep_what_the_reference_keeps(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> None:
    sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p)
    kept = filtered(row(logits), sampling)[0]
    assert set(torch.isfinite(kept).nonzero()[:, 0].tolist()) == reference(logits.tolist(), sampling)


@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.9999])
def test_large_vocabularies_are_filtered_like_small_ones(spread: float, top_p: float) -> None:
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(1)) * spread
    kept = filtered(logits, Sampling(temperature=1.0, top_p=top_p))
    for row, found in zip(logits.double(), kept, strict=True):
        values, order = row.sort(descending=True)
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)
        expected = set(order[before < top_p].tolist())
        # Sums in float32 and float64 may differ by a token or two at the edge, never by more.
        assert len(set(torch.isfinite(found).nonzero()[:, 0].tolist()) ^ expected) <= 2


def test_of_equal_logits_filters_keep_the_smaller_ids() -> None:
    logits = row([1.0, 3.0, 1.0, 1.0, 3.0, 1.0])
    for sampling in (Sampling(temperature=1.0, top_k=4), Sampling(temperature=1.0, top_p=0.88)):
        kept = torch.isfinite(filtered(logits, sampling))[0].tolist()
        assert kept == [True, True, True, False, True, False]


@pytest.mark.parametrize("static", [False, True])
def test_a_filter_that_keeps_one_and_one_that_keeps_all_but_one(static: bool) -> None:
    logits = row([1.0, 3.0, 2.0, 2.0])
    asked = {k: Sampling(temperature=1.0, top_k=k) for k in (1, 3, 4)}
    kept = {k: torch.isfinite(filtered(logits, sampling, static))[0].tolist() for k, sampling in asked.items()}
    assert kept[1] == [False, True, False, False]
    assert kept[3] == [False, True, True, True] and kept[4] == [True] * 4
    two = torch.cat([logits, logits.flip(-1)])
    both = torch.isfinite(filtered(two, Sampling(temperature=1.0, top_p=0.6), static)).tolist()
    assert both == [[False, True, True, False], [True, False, True, False]]


@given(LOGITS, st.integers(0, 10_000))
def test_top_k_of_one_is_greedy_at_any_temperature(logits: np.ndarray, position: int) -> None:
    (picked,) = pick(row(logits), [position], Sampling(temperature=1.7, top_k=1, seed=3))
    assert picked.token == int(logits.argmax())
    assert math.isfinite(picked.margin)


def test_repetition_penalty_pushes_seen_tokens_down() -> None:
    logits = row([2.0, 1.9, -1.0])
    assert pick(logits, [3], Sampling(repetition_penalty=1.2), [[0, 0, 2]])[0].token == 1
    assert pick(logits, [3], Sampling(repetition_penalty=1.2), [[1]])[0].token == 0
    assert logits.tolist() == row([2.0, 1.9, -1.0]).tolist()
    with pytest.raises(ValueError, match="contexts"):
        pick(logits, [3], Sampling(repetition_penalty=1.2))
    cases = (([0, 1, 2, 2], [1.0, -2.0, 0.0, 5.0]), ([], [2.0, -1.0, 0.0, 5.0]), ([3], [2.0, -1.0, 0.0, 2.5]))
    for context, wanted in cases:
        assert penalised(row([2.0, -1.0, 0.0, 5.0]), [context], 2.0).tolist() == [wanted]
    with pytest.raises(ValueError, match="shorter"):
        penalised(torch.zeros(2, 4), [[0]], 2.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_p", 0.0), ("top_p", 1.01),
        ("top_k", -1), ("min_p", 1.5), ("repetition_penalty", 0.0), ("seed", -1), ("seed", 2**63), ("logprobs", 21),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{field} must be .*, found"):
        Sampling(**{field: value})


@given(
    LOGITS, st.integers(0, 6), st.sampled_from([0.05, 0.3, 0.71, 0.93, 1.0]), st.sampled_from([0.0, 0.013, 0.37, 1.0])
)
def test_the_filter_without_branches_keeps_the_same_tokens(
    logits: np.ndarray, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p)
    rows = torch.stack([row(logits)[0], row(logits)[0].flip(0)])
    assert torch.equal(filtered(rows, sampling, static=True), filtered(rows, sampling, static=False))


@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.9999])
@pytest.mark.parametrize("top_k", [0, 700])
def test_so_it_does_for_large_vocabularies(spread: float, top_p: float, top_k: int) -> None:
    logits = (torch.randn(3, 5000, generator=torch.Generator().manual_seed(1)) * spread).round(decimals=2)
    sampling = Sampling(temperature=1.0, top_p=top_p, top_k=top_k)
    assert torch.equal(filtered(logits, sampling, static=True), filtered(logits, sampling, static=False))


def test_at_an_edge_of_top_p_no_order_of_adding_changes_what_is_kept() -> None:
    """Ten tokens of a tenth each: whether nine of them reach 0.9 is decided by the rounding of a sum of floats."""
    many = torch.zeros(1, 10)
    for top_p, kept in ((0.3, 3), (0.6, 6), (0.7, 7), (0.9, 9)):
        for static in (False, True):
            found = filtered(many, Sampling(temperature=1.0, top_p=top_p), static)
            assert int(torch.isfinite(found).sum()) == kept, (top_p, static)


def test_the_filter_without_branches_reads_nothing_on_the_host() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=40, min_p=0.01)
    with FakeTensorMode():
        logits = torch.randn(3, 5000)
        filtered(logits, sampling, static=True)
        with pytest.raises(Exception, match=r"_local_scalar_dense|data-dependent|nonzero"):
            filtered(logits, sampling, static=False)


def test_division_by_a_temperature_rounds_once() -> None:
    values = torch.randn(2, 1000, generator=torch.Generator().manual_seed(2))
    exact = (values.double() / float(np.float32(0.7))).float()
    assert torch.equal(divided(values, 0.7), exact)


@pytest.mark.gpu
def test_a_gpu_draws_what_a_cpu_draws() -> None:
    logits = torch.randn(16, 50_000, generator=torch.Generator().manual_seed(3)) * 3
    for sampling in (
        Sampling(temperature=0.7, seed=1),
        Sampling(temperature=0.9, top_p=0.9, seed=2),
        Sampling(temperature=1.3, top_p=0.95, top_k=50, min_p=0.01, seed=3),
    ):
        sides = [pick(side, range(16), sampling) for side in (logits, logits.cuda())]
        assert [p.token for p in sides[0]] == [p.token for p in sides[1]]
        scaled = [filtered(divided(side, 0.7), sampling).cpu() for side in (logits, logits.cuda())]
        assert torch.equal(scaled[0], scaled[1])
