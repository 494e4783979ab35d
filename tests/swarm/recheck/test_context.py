"""A row is right where it and all that it saw, as it was then, is the text: against a plain model of the slots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from swarm.model.rows import Commits, Layout, Rows
from swarm.recheck.context import Trace
from swarm.ring.frame import Frame

LAYOUT = Layout(8, 6)
TEXT = (10, 11, 12, 13, 14, 15)


def frame(rows: list[tuple[int, int, int, int, frozenset[int]]], commits: list[tuple[int, int]] = []) -> Frame:  # noqa: B006
    """rows: (slot, position, token, prefix, scratch slots seen)."""
    ancestors = np.zeros((len(rows), 1), np.uint8)
    for index, row in enumerate(rows):
        for slot in row[4]:
            ancestors[index, 0] |= 1 << slot
    columns = [np.array([row[i] for row in rows]) for i in range(4)]
    slot, position, token, prefix = columns
    found = Rows(
        slot.astype(np.uint32), position.astype(np.uint32), prefix.astype(np.uint32), ancestors,
        token.astype(np.int32), np.ones(len(rows), bool),
    )  # fmt: skip
    pairs = np.array(commits, np.uint32).reshape(-1, 2)
    return Frame(b"r" * 16, 0, 0, Commits(pairs[:, 0], pairs[:, 1]), found)


def certain(position: int, token: int) -> tuple[int, int, int, int, frozenset[int]]:
    return (8 + position, position, token, position + 1, frozenset())


def test_what_is_written_over_later_does_not_help() -> None:
    trace = Trace(LAYOUT, TEXT, True)
    assert trace.take(frame([certain(0, 99), certain(1, 11)])).tolist() == [False, False]
    assert trace.take(frame([certain(0, 10)])).tolist() == [True]
    assert trace.take(frame([certain(2, 12)])).tolist() == [False]  # row 1 saw 99
    assert trace.take(frame([certain(1, 11), certain(2, 12)])).tolist() == [True, True]


def test_a_draft_counts_where_it_is_committed_to_its_own_place() -> None:
    for place, right in ((1, True), (2, False)):
        trace = Trace(LAYOUT, TEXT, True)
        assert trace.take(frame([certain(0, 10), (3, 1, 11, 1, frozenset({3}))])).all()
        after = certain(2, 12) if place == 1 else (4, 3, 13, 3, frozenset({4}))
        assert trace.take(frame([after], [(3, place)])).tolist() == [right]


ROW = st.tuples(
    st.integers(0, 13), st.integers(0, 5), st.integers(0, 1), st.integers(0, 6), st.frozensets(st.integers(0, 7))
)
STEP = st.tuples(
    st.lists(ROW, min_size=1, max_size=4, unique_by=lambda row: row[0]),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5)), max_size=2, unique_by=lambda pair: pair[1]),
)


@given(st.lists(STEP, max_size=6))
def test_like_a_plain_model_of_the_slots(
    steps: list[tuple[list[tuple[int, int, int, int, frozenset[int]]], list[tuple[int, int]]]],
) -> None:
    trace = Trace(LAYOUT, TEXT, True)
    slots: dict[int, tuple[int, bool]] = {}
    for drawn, commits in steps:
        rows = []
        for slot, position, wrong, prefix, seen in drawn:
            if slot >= 8:
                position, prefix, seen = slot - 8, slot - 7, frozenset()
            else:
                seen = seen | {slot}
            rows.append((slot, position, TEXT[position] + 50 * wrong, prefix, seen))
        for place, known in [(place, slots.get(slot)) for slot, place in commits]:
            slots[8 + place] = (-1, False) if known is None else (known[0], known[1] and known[0] == place)
        for slot, position, *_ in rows:
            slots[slot] = (position, False)
        expected = {}
        for slot, position, token, prefix, seen in sorted(rows, key=lambda row: row[1]):
            visible = {*(8 + p for p in range(prefix)), *seen} - {slot}
            states = [slots.get(other, (-1, False)) for other in visible]
            right = token == TEXT[position] and sorted(p for p, _ in states) == list(range(position))
            right = right and all(good for _, good in states)
            slots[slot] = (position, right)
            expected[slot] = right
        found = trace.take(frame(rows, commits))
        assert found.tolist() == [expected[row[0]] for row in rows]


def test_tokens_that_do_not_travel_are_not_compared() -> None:
    behind = frame([certain(0, -1), certain(1, -1)])
    at = int(behind.rows.position.min())
    assert Trace(LAYOUT, TEXT, True, at + 99).take(behind).all() and not Trace(LAYOUT, TEXT, True, at).take(behind)[0]
    assert Trace(LAYOUT, TEXT, False).take(behind).all() and not Trace(LAYOUT, TEXT, True).take(behind).any()
    wrong = replace(behind, rows=replace(behind.rows, token=np.array([99, -1], np.int32)))
    assert not Trace(LAYOUT, TEXT, False).take(wrong).any()
