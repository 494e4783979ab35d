"""Every field of a frame and of an answer crosses as it is, also at the ends of its range."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from swarm.base.errors import PeerError
from swarm.model.rows import Commits, Layout, Rows, no_commits
from swarm.ring.certain_rows import certain_rows
from swarm.ring.frame import (
    ANSWER,
    DOWN,
    Answer,
    Drafts,
    Frame,
    encode_answer,
    encode_commits,
    encode_frame,
    parse_answer_untrusted,
    parse_commits_untrusted,
    parse_frame_untrusted,
)
from swarm.ring.words import MAX_HOLD_MS, parse_down_untrusted, parse_tail_untrusted
from tests.swarm.wire.messages import RUN, walking

LAYOUT = Layout(8, 64)


def frame(**changes: Any) -> Frame:
    return replace(Frame(RUN, 3, 7, no_commits(), certain_rows(LAYOUT, 5, [1, 2])), **changes)


def answer() -> Answer:
    rows, tops = np.array([0, 2]), np.arange(4).reshape(2, 2)
    return Answer(
        RUN, 3, 7, rows.astype(np.uint32), np.array([0, 9], np.int32), np.array([0.5, 2], np.float32),
        np.array([-0.25, -1], np.float32), tops.astype(np.int32), (tops * -0.5).astype(np.float32), ((1, 2),),
    )  # fmt: skip


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    for name, value in vars(one).items():
        if isinstance(value, Rows | Commits):
            same(value, getattr(other, name))
        else:
            np.testing.assert_equal(getattr(other, name), value, err_msg=name)


@pytest.mark.parametrize("replay", [-1, 0, 5])
def test_a_frame_comes_as_it_went(replay: int) -> None:
    commits = Commits(np.array([3], np.uint32), np.array([4], np.uint32))
    sent = frame(commits=commits, replay=replay, timings=((10, 20),), drafts=2)
    message = encode_frame(sent)
    assert message.kind == DOWN
    found = parse_frame_untrusted(message)
    same(sent, found)
    assert found.rows.want.dtype == bool


def test_an_answer_comes_as_it_went() -> None:
    message = encode_answer(answer())
    assert message.kind == ANSWER
    found = parse_answer_untrusted(message)
    same(answer(), found)
    assert found.run == RUN and found.drafts is None and found.drafts_us == 0


def drafted(tokens: list[int], shares: list[float]) -> Answer:

    levels = Drafts(0, np.array([tokens], np.int32), np.array([shares], np.float32))
    return replace(answer(), drafts=levels, drafts_us=12)


def test_drafts_of_a_tail_reach_to_the_ends_of_their_ranges() -> None:
    found = parse_answer_untrusted(encode_answer(drafted([0, 1], [0.0, 1.0])))
    assert found.drafts is not None and found.drafts.token.tolist() == [[0, 1]] and found.drafts_us == 12
    assert found.drafts.share.tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("tokens", "shares"),
    [([-1, 1], [0.5, 0.5]), ([0, 1], [-0.01, 0.5]), ([0, 1], [0.5, 1.01]), ([0, 1], [0.5, np.nan])],
)
def test_drafts_beyond_their_ranges_are_refused(tokens: list[int], shares: list[float]) -> None:
    with pytest.raises(PeerError, match="expected token ids and shares from 0 to 1 in drafts, found others"):
        parse_answer_untrusted(encode_answer(drafted(tokens, shares)))


def test_commits_that_travel_alone_stay_in_the_session() -> None:
    inside = Commits(np.array([7], np.uint32), np.array([63], np.uint32))
    same(inside, parse_commits_untrusted(encode_commits(inside), LAYOUT))
    for slot, position in ((8, 0), (0, 64)):
        commits = Commits(np.array([slot], np.uint32), np.array([position], np.uint32))
        with pytest.raises(PeerError, match="a commit reaches outside the session's slots"):
            parse_commits_untrusted(encode_commits(commits), LAYOUT)
    with pytest.raises(PeerError, match="expected commits, found other bytes"):
        parse_commits_untrusted(b"1234567", LAYOUT)


def test_a_frame_cut_short_says_how_much_is_missing() -> None:
    whole = encode_frame(frame())
    with pytest.raises(PeerError, match=r"expected \d+ more bytes in a frame, found \d+"):
        parse_frame_untrusted(replace(whole, body=bytes(whole.body)[:9]))


@pytest.mark.parametrize("name", walking())
def test_words_of_a_ring_are_read_strictly(name: str) -> None:
    header = dict(walking()[name].header)
    read = parse_tail_untrusted if name in ("accepted", "closed", "collected") else parse_down_untrusted
    read(header)
    for field, wrong in (("run", b"short"), ("do", "jump"), ("epoch", -1), ("hold_ms", MAX_HOLD_MS + 1), ("record", 7)):
        if field in header:
            with pytest.raises(PeerError, match=f"at word of a (ring|tail)[.]{field}, found"):
                read({**header, field: wrong})
