"""Runs kept for learning: what is written is what is read, and every other byte is refused by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draft.recorded_run import MOST_TOPS, DamagedRun, RecordedRun, from_bytes, to_bytes

TOKEN = st.integers(0, 2**31 - 1)
LOGPROB = st.floats(-1e4, 0, width=32)


@st.composite
def runs(draw: st.DrawFn) -> RecordedRun:
    before, said = draw(st.lists(TOKEN, min_size=1, max_size=9)), draw(st.lists(TOKEN, min_size=1, max_size=9))
    tops = draw(st.integers(0, MOST_TOPS))
    shape = len(said), tops

    def of(kind: st.SearchStrategy[float], count: int, form: type) -> np.ndarray:
        return np.array(draw(st.lists(kind, min_size=count, max_size=count)), form)

    return RecordedRun(
        draw(st.binary(min_size=32, max_size=32)).hex(),
        np.array([*before, *said], np.int32),
        len(before),
        draw(st.booleans()),
        of(LOGPROB, len(said), np.float32),
        of(TOKEN, len(said) * tops, np.int32).reshape(shape),
        of(LOGPROB, len(said) * tops, np.float32).reshape(shape),
    )


def same(one: RecordedRun, other: RecordedRun) -> bool:
    arrays = ("tokens", "logprobs", "top_ids", "top_logprobs")
    plain = (one.target, one.start, one.greedy) == (other.target, other.start, other.greedy)
    return plain and all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)


@given(runs())
def test_what_is_written_is_read(run: RecordedRun) -> None:
    found = from_bytes(to_bytes(run))
    assert same(found, run) and found.prompt_key == run.prompt_key
    assert found.answered == len(run.tokens) - run.start and to_bytes(found) == to_bytes(run)


@given(runs(), st.data())
def test_a_file_with_any_byte_changed_cut_or_added_is_refused(run: RecordedRun, data: st.DataObject) -> None:
    whole = to_bytes(run)
    at, by = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    changed = bytearray(whole)
    changed[at] ^= by
    for bad in (bytes(changed), whole[:at], whole + bytes([by])):
        with pytest.raises(DamagedRun):
            from_bytes(bad)


@given(st.binary(max_size=300))
def test_bytes_of_anything_else_are_refused(data: bytes) -> None:
    with pytest.raises(DamagedRun):
        from_bytes(data)


RUN = RecordedRun(
    "ab" * 32,
    np.array([5, 6, 7, 8], np.int32),
    2,
    True,
    np.array([-0.5, -1.0], np.float32),
    np.array([[7, 1], [8, 2]], np.int32),
    np.array([[-0.5, -2.0], [-1.0, -3.0]], np.float32),
)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"start": 0}, "an answer behind a prompt"),
        ({"start": 4}, "an answer behind a prompt"),
        ({"logprobs": RUN.logprobs[:1]}, "what the tail told of 2 tokens"),
        ({"top_ids": RUN.top_ids[:, :1]}, "what the tail told of 2 tokens"),
        ({"tokens": np.array([5, 6, 7, -8], np.int32)}, "token ids"),
        ({"top_ids": -RUN.top_ids}, "token ids"),
        ({"logprobs": np.array([-0.5, np.nan], np.float32)}, "finite log-probabilities"),
        ({"top_logprobs": RUN.top_logprobs * np.float32(np.inf)}, "finite log-probabilities"),
    ],
)
def test_what_contradicts_itself_is_no_run(fields: dict[str, object], said: str) -> None:
    with pytest.raises(DamagedRun, match=said):
        replace(RUN, **fields)  # type: ignore[arg-type]
