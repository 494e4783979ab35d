"""Errors as one line can bear them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import shortly


def test_equal_reasons_stand_once_and_long_ones_are_cut() -> None:
    assert shortly([]) == "" and shortly(["a", "a"]) == "a" and shortly(["a", "b"]) == "a; b"
    assert shortly(["a", "b", "c", "d", "c"]) == "a; b; and 2 more"
    assert shortly(["x" * 500]) == "x" * 159 + "…"


@given(st.lists(st.text(max_size=300), max_size=50))
def test_it_stays_a_line(reasons: list[str]) -> None:
    assert len(shortly(reasons)) < 2 * 160 + 20
