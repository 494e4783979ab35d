"""Frames and answers survive their bytes, and other bytes raise PeerError alone."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import PeerError
from swarm.model.rows import Commits, Layout, Rows, check_untrusted
from swarm.net.channel.message import Message
from swarm.ring.frame import (
    MAX_DRAFT_LEVELS,
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

numbers = st.integers(0, 2**32 - 1)
levels = st.integers(0, MAX_DRAFT_LEVELS)


def array(values: list[int], dtype: Any) -> Any:
    return np.array(values, dtype)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    n, m, width = draw(st.integers(1, 9)), draw(st.integers(0, 4)), draw(st.integers(0, 4))

    def some(count: int) -> list[int]:
        return draw(st.lists(numbers, min_size=count, max_size=count))

    rows = Rows(
        array(some(n), np.uint32),
        array(some(n), np.uint32),
        array(some(n), np.uint32),
        np.frombuffer(draw(st.binary(min_size=n * width, max_size=n * width)), np.uint8).reshape(n, width),
        array(draw(st.lists(st.integers(-1, 2**31 - 1), min_size=n, max_size=n)), np.int32),
        array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), np.bool_),
    )
    commits = Commits(array(some(m), np.uint32), array(some(m), np.uint32))
    timings = tuple(draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=4)))
    hidden = draw(st.none() | st.binary(max_size=40).map(lambda data: ({"wire": "float32", "shape": [1]}, data)))
    return Frame(draw(st.binary(min_size=16, max_size=16)), 3, 17, commits, rows, timings, -1, hidden, draw(levels))


def crossed(message: Message) -> Message:
    """As it comes out at the other end."""
    return Message(message.kind, msgpack.unpackb(msgpack.packb(message.header)), memoryview(bytes(message.body)))


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


@given(frames())
def test_a_frame_survives_its_bytes(frame: Frame) -> None:
    read = parse_frame_untrusted(crossed(encode_frame(frame)))
    assert same(read.rows, frame.rows) and same(read.commits, frame.commits)
    assert (read.run, read.epoch, read.seq, read.timings, read.replay) == (frame.run, 3, 17, frame.timings, -1)
    assert (read.hidden is None) == (frame.hidden is None) and read.drafts == frame.drafts
    if read.hidden is not None and frame.hidden is not None:
        assert bytes(read.hidden[1]) == frame.hidden[1]


@given(frames(), st.data())
def test_a_damaged_frame_is_refused_or_another_frame(frame: Frame, data: st.DataObject) -> None:
    message = encode_frame(frame)
    header, body = dict(message.header), bytearray(message.body)
    if data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(header)))
        header[key] = data.draw(
            st.none() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5) | st.binary(max_size=20)
        )
    body = body[: data.draw(st.integers(0, len(body)))]
    try:
        read = parse_frame_untrusted(Message(message.kind, header, bytes(body)))
        check_untrusted(read.rows, read.commits, Layout(32, 64))
    except PeerError:
        return


@given(st.integers(0, 6), st.integers(0, 3), st.data())
def test_an_answer_survives_its_bytes(n: int, k: int, data: st.DataObject) -> None:
    floats = st.lists(st.floats(width=32, allow_nan=False), min_size=n, max_size=n)
    answer = Answer(
        b"r" * 16, 1, 2, array(list(range(n)), np.uint32), array(list(range(n)), np.int32),
        array(data.draw(floats), np.float32), array(data.draw(floats), np.float32),
        np.arange(n * k, dtype=np.int32).reshape(n, k), np.ones((n, k), np.float32), ((1, 2),),
    )  # fmt: skip
    read = parse_answer_untrusted(crossed(encode_answer(answer)))
    assert all(
        np.array_equal(getattr(read, name), getattr(answer, name)) for name in ("row", "token", "margin", "logprob")
    )
    assert np.array_equal(read.top_token, answer.top_token) and read.timings == ((1, 2),)


def drafting(token: int = 3, share: float = 0.5, row: int = 4) -> Answer:
    """An answer without rows and with drafts of two levels."""
    none, rows = np.zeros(0, np.float32), np.zeros((0, 0))
    drafts = Drafts(row, array([[token, 4], [5, 6]], np.int32), np.full((2, 2), share, np.float32))
    empty = array([], np.uint32)
    return Answer(b"r" * 16, 0, 7, empty, empty, none, none, rows, rows, drafts=drafts, drafts_us=900)


def test_drafts_of_a_tail_survive_their_bytes() -> None:
    answer = drafting()
    read = parse_answer_untrusted(crossed(encode_answer(answer)))
    assert read.drafts is not None and answer.drafts is not None and same(read.drafts, answer.drafts)
    assert read.drafts_us == 900


@pytest.mark.parametrize(
    "bad", [drafting(token=-1), drafting(share=1.5), drafting(share=float("nan")), drafting(row=-1)]
)
def test_drafts_that_are_none_are_refused(bad: Answer) -> None:
    with pytest.raises(PeerError, match="drafts"):
        parse_answer_untrusted(crossed(encode_answer(bad)))


def test_negative_tokens_of_a_tail_are_refused() -> None:
    one = np.zeros(1, np.float32)
    none = np.zeros((1, 0))
    answer = Answer(b"r" * 16, 0, 0, array([0], np.uint32), array([-5], np.int32), one, one, none, none)
    with pytest.raises(PeerError, match="negative"):
        parse_answer_untrusted(crossed(encode_answer(answer)))


@given(st.lists(st.tuples(st.integers(0, 31), st.integers(0, 63)), max_size=8))
def test_commits_travel_without_a_frame(pairs: list[tuple[int, int]]) -> None:
    commits = Commits(array([a for a, _ in pairs], np.uint32), array([b for _, b in pairs], np.uint32))
    assert same(parse_commits_untrusted(encode_commits(commits), Layout(32, 64)), commits)


@pytest.mark.parametrize("data", [None, b"123", b"\xff" * 8, "text", b"\0" * 8 * 5000])
def test_other_commits_are_refused(data: object) -> None:
    with pytest.raises(PeerError):
        parse_commits_untrusted(data, Layout(32, 64))


def row(slot: int, position: int, prefix: int, bits: int, scratch: int = 8) -> Rows:
    return Rows(
        array([slot], np.uint32), array([position], np.uint32), array([prefix], np.uint32),
        np.frombuffer(bits.to_bytes(scratch // 8, "little"), np.uint8).reshape(1, -1).copy(),
        array([1], np.int32), array([True], np.bool_),
    )  # fmt: skip


NO_COMMITS = Commits(array([], np.uint32), array([], np.uint32))


@pytest.mark.parametrize(
    ("rows", "commits", "why"),
    [
        (row(99, 1, 1, 1), NO_COMMITS, "slot 99"),
        (row(0, 99, 1, 1), NO_COMMITS, "position beyond"),
        (row(0, 1, 99, 1), NO_COMMITS, "position beyond"),
        (row(0, 1, 1, 0), NO_COMMITS, "see itself"),
        (row(9, 1, 1, 0), NO_COMMITS, "see itself"),
        (row(9, 2, 3, 0), NO_COMMITS, "slot of its own position"),
        (row(0, 1, 1, 1), Commits(array([8], np.uint32), array([0], np.uint32)), "commit reaches outside"),
        (row(0, 1, 1, 1), Commits(array([0], np.uint32), array([77], np.uint32)), "commit reaches outside"),
    ],
)
def test_rows_that_reach_outside_are_refused(rows: Rows, commits: Commits, why: str) -> None:
    with pytest.raises(PeerError, match=why):
        check_untrusted(rows, commits, Layout(8, 16))


def test_honest_rows_pass() -> None:
    check_untrusted(row(0, 1, 1, 1), NO_COMMITS, Layout(8, 16))
    check_untrusted(row(9, 1, 2, 0), NO_COMMITS, Layout(8, 16))
