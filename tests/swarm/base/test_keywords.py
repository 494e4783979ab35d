"""Which values a keyword of the Python API takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from swarm.base.errors import UsageError
from swarm.base.events import Report
from swarm.base.keywords import check_keywords, fits, say_kind
from swarm.client.async_client import ClientOptions
from swarm.client.options import AnswerOptions
from swarm.node.embedded import NodeOptions


@pytest.mark.parametrize(
    ("wanted", "right", "wrong"),
    [
        (int, [0, -3], [True, 1.0, "1", None]),
        (float, [0, 1.5], [False, "1", b"1"]),
        (bool, [True], [1, "yes"]),
        (str, ["x"], [b"x", 3]),
        (Path | str, ["x", Path("x")], [3, b"x"]),
        (Literal["a", "b"], ["a"], ["c", 1]),
        (tuple[str, int], [("x", 1), ["x", 1]], [("x",), ("x", "1"), "x1", {"x": 1}]),
        (int | tuple[int, ...], [3, (0, 1), ()], ["0", (0, "1")]),
        (Sequence[str], [["x"], (), ("x", "y")], ["x", [1], {"x"}]),
        (Report, [print, lambda event: None], [3, "print"]),
        (Any, [3, None, "x"], []),
    ],
)
def test_what_fits(wanted: Any, right: list[Any], wrong: list[Any]) -> None:
    assert [value for value in right if not fits(value, wanted)] == []
    assert [value for value in wrong if fits(value, wanted)] == []


def test_the_kind_that_is_wanted_is_named() -> None:
    said = "expected layers to be tuple.int, int., found '0:15'"
    with pytest.raises(UsageError, match=said):
        check_keywords({"layers": "0:15"}, NodeOptions)
    assert say_kind(int | tuple[int, ...]) == "int or tuple[int, ...]"
    assert say_kind(Literal["a", "b"]) == "one of 'a', 'b'"
    check_keywords({"layers": None, "report": print, "state": "x", "log": Path("x")}, NodeOptions)
    check_keywords({"draft": "auto", "only": ["x"]}, ClientOptions)
    check_keywords({"stop": "x", "temperature": 1, "receipt": False}, AnswerOptions)
    for only in ("ada", 3):
        with pytest.raises(UsageError, match=r"only to be sequence\[str\]"):
            check_keywords({"only": only}, ClientOptions)
