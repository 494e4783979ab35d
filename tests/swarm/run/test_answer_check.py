"""What the tail may answer: the frames in flight, in order, each wanted row, with tokens that exist."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from swarm.base.errors import PeerError
from swarm.ring.frame import Answer, Drafts
from swarm.run.answer_check import Sent, check_answer_untrusted, within_pass

FLIGHT = {4: Sent(0.0, np.array([], np.intp)), 5: Sent(0.0, np.array([0, 2])), 6: Sent(0.0, np.array([0]))}


def answer(seq: int = 5, rows: tuple[int, ...] = (0, 2), tokens: tuple[int, ...] = (1, 9)) -> Answer:
    values = np.zeros(len(rows), np.float32)
    top: Any = np.zeros((len(rows), 0), np.int32)
    return Answer(bytes(16), 0, seq, np.array(rows, np.uint32), np.array(tokens, np.int32), values, values, top, top)


def drafts(levels: int) -> Drafts:
    return Drafts(2, np.zeros((levels, 1), np.int32), np.ones((levels, 1), np.float32))


def test_drafts_are_taken_as_far_as_they_were_asked_for() -> None:
    flight = {5: replace(FLIGHT[5], drafts=2)}
    check_answer_untrusted(replace(answer(), drafts=drafts(2)), flight, 10)
    with pytest.raises(PeerError, match="at most 2 tokens ahead with frame 5, found 3"):
        check_answer_untrusted(replace(answer(), drafts=drafts(3)), flight, 10)


def test_the_answer_that_is_due_is_taken() -> None:
    check_answer_untrusted(answer(), FLIGHT, 10)  # frame 4 wants nothing and may be passed over
    check_answer_untrusted(answer(4, (), ()), FLIGHT, 10)
    check_answer_untrusted(answer(tokens=(1, 99)), FLIGHT, None)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (answer(rows=(0,), tokens=(1,)), "expected tokens for 2 rows of frame 5, found 1 others"),
        (answer(rows=(0, 1)), "expected tokens for 2 rows of frame 5"),
        (answer(7), "expected an answer to a frame in flight, found an answer to frame 7"),
        (answer(3), "expected an answer to a frame in flight, found another answer to frame 3"),
        (answer(6, (0,), (1,)), "expected the answer to frame 5, found one to frame 6"),
        (answer(tokens=(1, 10)), "expected token ids from 0 to 9, found 10 in an answer"),
        (answer(tokens=(-1, 1)), "expected token ids from 0 to 9, found -1 in an answer"),
        (replace(answer(), top_token=np.array([[3], [11]], np.int32)), "found 11 in an answer"),
        (replace(answer(), logprob=np.array([0.0, np.nan], np.float32)), "what is not a number"),
        (replace(answer(), logprob=np.array([0.0, -np.inf], np.float32)), "what is not a number"),
        (replace(answer(), margin=np.array([np.inf, 0.0], np.float32)), "what is not a number"),
        (replace(answer(), hidden=({"wire": "float32"}, b"")), "expected tokens .*, found hidden rows with frame 5"),
        (replace(answer(), drafts=drafts(1)), "expected drafts of at most 0 tokens ahead with frame 5, found 1"),
    ],
)
def test_an_answer_of_wrong_count_place_or_tokens_is_refused(wrong: Answer, why: str) -> None:
    with pytest.raises(PeerError, match=why):
        check_answer_untrusted(wrong, FLIGHT, 10)


def test_stages_cannot_have_taken_longer_than_the_pass() -> None:
    fitting = replace(answer(), timings=((100, 200), (0, 600)), drafts_us=500)
    assert within_pass(fitting, 1000) is fitting
    loud = replace(answer(), timings=((0, 10**12), (500, 500)), drafts_us=10**12)
    held = within_pass(loud, 1000)
    assert sum(queued + computed for queued, computed in held.timings) <= 1000 and held.drafts_us == 1000
    assert held.timings[0] == (0, 999) and len(held.timings) == 2
    assert within_pass(replace(loud, timings=()), 1000).drafts_us == 1000
