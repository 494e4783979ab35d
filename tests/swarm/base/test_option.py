"""Options declared as fields: what is built of them, and which values are refused, by name and with their bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from swarm.base.errors import UsageError
from swarm.base.option import Number, build, check, declared, like, option, or_none


@dataclass(frozen=True)
class Oven:
    heat: float = option(180.0, "degrees", "C", read=Number(float, 0, 300, "degrees"))
    bytes_left: int | None = option(None, "room", "GB", name="--room", read=Number(float, 0, 9, "GB", scale=10**9))
    light: bool = option(True, "leave it dark", name="--no-light", off=True)
    trays: tuple[str, ...] = option((), "several", repeat=True)
    shelf: Path = option(Path(), "where", factory=lambda: Path("kitchen"))
    mode: str = option("air", "how", choices=("air", "grill"))
    serial: int = 7

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Kitchen:
    oven_mode: str = like(Oven, "mode")


def test_fields_are_built_of_what_was_given_and_keep_their_defaults() -> None:
    assert build(Oven, {}) == Oven() == Oven(shelf=Path("kitchen"))
    given = {"heat": 20.0, "room": 5, "no_light": True, "trays": ["a", "b"], "shelf": None, "serial": 9, "other": 1}
    assert build(Oven, given) == Oven(20.0, 5, False, ("a", "b"), Path("kitchen"))
    assert build(Oven, {"heat": 20.0}, heat=30.0, serial=8) == Oven(30.0, serial=8)


def test_a_field_that_is_like_another_has_its_default_and_its_choices() -> None:
    (only,) = declared(Kitchen)
    assert only[0] == "oven_mode" and only[1].choices == ("air", "grill") and Kitchen().oven_mode == "air"
    assert [name for name, _, _ in declared(Oven)] == ["heat", "bytes_left", "light", "trays", "shelf", "mode"]


@pytest.mark.parametrize(
    ("number", "text", "value"),
    [
        (Number(int, 1, 3, "cups"), "3", 3),
        (Number(float, 0, 1, "cups", above=True), "0.5", 0.5),
        (Number(float, 0, 9, "gigabytes", scale=10**9), "1.5", 1_500_000_000),
        (Number(float, 0, 9, "days", scale=86_400.0), "2", 172_800.0),
        (Number(int, 0, math.inf, "cups"), "9" * 30, int("9" * 30)),
    ],
)
def test_numbers_are_read_in_the_field_s_unit(number: Number, text: str, value: float) -> None:
    assert number(text) == value and type(number(text)) is type(value)


@pytest.mark.parametrize(
    ("number", "text", "says"),
    [
        (Number(int, 1, 3, "cups"), "4", r"expected cups \(1 to 3\), found '4'"),
        (Number(int, 1, 3, "cups"), "2.5", r"found '2.5'"),
        (Number(int, 0, 2**63 - 1, "cups"), str(2**63), r"0 to 9223372036854775807"),
        (Number(float, 0, 1, "cups", above=True), "0", r"above 0 and at most 1"),
        (Number(float, 0, 300, "cups"), "nan", r"found 'nan'"),
        (Number(float, 0, math.inf, "cups"), "-1", r"0 or more"),
    ],
)
def test_other_numbers_are_refused_with_their_bounds(number: Number, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        number(text)


def test_a_program_is_held_to_the_same_bounds_and_choices() -> None:
    with pytest.raises(UsageError, match="heat must be 0 to 300, found 301"):
        Oven(heat=301)
    with pytest.raises(UsageError, match=r"expected --mode air\|grill, found 'steam'"):
        Oven(mode="steam")


def test_an_empty_text_can_mean_nothing() -> None:
    assert or_none(int)("") is None and or_none(int)("3") == 3
