"""Whom a stage computes next: everybody gets a turn, prompts wait for nobody longer than one chunk."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.stage.scheduler import BULK_ROWS, LINGER_GAP_S, LINGER_SHARE, QueuedFrame, linger_until, pick


@st.composite
def queues(draw: st.DrawFn) -> list[QueuedFrame]:
    count = draw(st.integers(0, 12))
    return [
        QueuedFrame(bytes([i]), draw(st.integers(1, 400)), draw(st.integers(0, 9)), draw(st.floats(0, 9)))
        for i in range(count)
    ]


@given(queues(), st.integers(1, 600))
def test_within_budget_one_prompt_and_never_nobody(waiting: list[QueuedFrame], budget: int) -> None:
    chosen = pick(waiting, budget)
    by_key = {w.key: w for w in waiting}
    assert bool(chosen) == bool(waiting)
    assert len(set(chosen)) == len(chosen)
    assert sum(by_key[key].rows for key in chosen) <= budget or len(chosen) == 1
    assert sum(by_key[key].rows > BULK_ROWS for key in chosen) <= 1


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(64, 600))
def test_nobody_starves(sizes: list[int], budget: int) -> None:
    served = [0] * len(sizes)
    for forward in range(1, 4 * len(sizes) + 1):
        waiting = [QueuedFrame(bytes([i]), rows, served[i], 0.0) for i, rows in enumerate(sizes)]
        for key in pick(waiting, budget):
            served[key[0]] = forward
    assert min(served) > 2 * len(sizes)


def test_small_frames_of_all_sessions_share_a_forward() -> None:
    assert len(pick([QueuedFrame(bytes([i]), 4, 0, 0.0) for i in range(8)], 512)) == 8


def test_who_shared_a_forward_is_waited_for() -> None:
    one = [QueuedFrame(b"a", 1, 7, 10.0)]
    assert linger_until(one, [7], 1.0) == 10.0 + LINGER_GAP_S
    assert linger_until(one, [6, 8, 0], 1.0) == 0.0
    assert linger_until([QueuedFrame(b"a", 1, 0, 10.0)], [0, 0], 1.0) == 0.0  # newcomers never shared anything
    assert linger_until([], [7], 1.0) == 0.0


@given(queues(), st.lists(st.integers(0, 9)), st.floats(0, 1))
def test_nobody_waits_longer_than_a_share_of_a_forward(
    waiting: list[QueuedFrame], absent: list[int], forward_s: float
) -> None:
    until = linger_until(waiting, absent, forward_s)
    assert until <= min((w.since for w in waiting), default=0.0) + LINGER_SHARE * forward_s
    assert until == 0.0 or until <= max(w.since for w in waiting) + LINGER_GAP_S
