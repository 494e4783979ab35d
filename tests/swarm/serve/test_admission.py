from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.serve.admission import FairQueue, RequestQueue
from swarm.serve.errors import ApiError


def queue(running: int = 2, waiting: int = 8, each: int = 4) -> FairQueue:
    return FairQueue(running, waiting, each)


def test_a_flood_does_not_delay_another_user() -> None:
    line = queue(running=1, waiting=99, each=99)
    for i in range(50):
        line.join("flood", i)
    assert line.next() == ("flood", 0)
    line.join("other", "x")
    line.done("flood")
    assert line.next() == ("other", "x")
    line.done("other")
    assert line.next() == ("flood", 1)


def test_turns_go_round() -> None:
    line = queue(running=1, waiting=99, each=99)
    for user in "abc":
        for i in range(2):
            line.join(user, i)
    order = []
    while (turn := line.next()) is not None:
        order.append(turn[0])
        line.done(turn[0])
    assert order == ["a", "b", "c", "a", "b", "c"]


def test_the_user_with_fewest_runs_is_next() -> None:
    line = queue(running=3, waiting=99, each=99)
    for i in range(3):
        line.join("a", i)
    line.join("b", 0)
    assert [turn and turn[0] for turn in (line.next(), line.next(), line.next(), line.next())] == ["a", "b", "a", None]


def test_refusals() -> None:
    line = queue(waiting=3, each=2)
    for i in range(2):
        line.join("a", i)
    assert line.refusal("a") == "user" and line.refusal("b") is None
    line.join("b", 0)
    assert line.refusal("b") == "queue"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["join", "done", "leave", "next"])), max_size=60))
def test_counts_stay_true(steps: list[tuple[str, str]]) -> None:
    line = queue(running=2, waiting=99, each=99)
    running: list[str] = []
    waiting: list[tuple[str, int]] = []
    for number, (user, step) in enumerate(steps):
        if step == "join":
            line.join(user, number)
            waiting.append((user, number))
        elif step == "leave" and any(who == user for who, _ in waiting):
            entry = next(entry for entry in waiting if entry[0] == user)
            line.leave(*entry)
            waiting.remove(entry)
        elif step == "done" and user in running:
            line.done(user)
            running.remove(user)
        elif step == "next" and (turn := line.next()) is not None:
            waiting.remove(turn)  # type: ignore[arg-type]
            running.append(turn[0])
        assert set(line.served) <= set(line.running) | set(line.waiting)
        assert line.n_running == len(running) <= 2 and line.n_waiting == len(waiting)
    assert (line.next() is None) == (not waiting or len(running) == 2)


async def test_a_slot_given_up_while_waiting_is_not_lost() -> None:
    admission = RequestQueue(queue(running=1), 10.0)
    entered = asyncio.Event()

    async def work() -> None:
        async with admission.slot("a"):
            entered.set()
            await asyncio.Event().wait()

    first = asyncio.create_task(work())
    await entered.wait()
    entered.clear()
    second, third = asyncio.create_task(work()), asyncio.create_task(work())
    await asyncio.sleep(0)
    # The turn passes to the second in the same instant in which it is cancelled: the third must get it.
    first.cancel()
    second.cancel()
    await entered.wait()
    assert admission.queue.n_running == 1 and admission.queue.n_waiting == 0
    third.cancel()
    await asyncio.gather(first, second, third, return_exceptions=True)
    assert admission.queue.n_running == 0


async def test_refusals_carry_a_time() -> None:
    admission = RequestQueue(queue(running=1, waiting=1, each=1), 10.0)
    async with admission.slot("a"):
        waiting = asyncio.create_task(admission.slot("a").__aenter__())
        await asyncio.sleep(0)
        for user, status in (("a", 429), ("b", 503)):
            with pytest.raises(ApiError) as caught:
                async with admission.slot(user):
                    pass
            assert caught.value.status == status and caught.value.retry_after is not None
            assert 1 <= caught.value.retry_after <= 60
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
