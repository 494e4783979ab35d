"""The codec: what is declared comes back, anything else is one error that names the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.address import AddressText
from swarm.base.bounds import (
    AtMost,
    Between,
    Exactly,
    Key,
    MayLack,
    OneOf,
    Printable,
    Since,
    Spelled,
    by_format,
    by_name,
    by_position,
)
from swarm.base.codec import Codec
from swarm.base.errors import BusyError, PeerError, UsageError


@by_position
@dataclass(frozen=True)
class Layer:
    start: Annotated[int, Between(0, 9)]
    name: Annotated[str, AtMost(4, least=1), Printable()] = "a"


@by_name(others="refused")
@dataclass(frozen=True)
class Options:
    heat: Annotated[float, Between(0, 2)]
    kind: Literal["plain", "tree"] = "plain"
    note: Annotated[Annotated[str, AtMost(9)] | None, MayLack(unsaid=True)] = None


@by_name(tag=("do", "whole"))
@dataclass(frozen=True)
class Whole:
    id: Annotated[bytes, Exactly(0, 2)]
    layers: Annotated[tuple[Layer, ...], AtMost(3)]
    pair: tuple[bool, Annotated[int, Between(-5, 5)] | None]
    options: Options
    at: AddressText
    lease_s: Annotated[float, Key("lease_ms"), Spelled(lambda ms: ms / 1000, lambda s: int(s * 1000), Lease)]
    rest: Annotated[Mapping[str, object], AtMost(2)]
    wire: Annotated[str, OneOf(("int8", "fp8"))]
    hint: Annotated[Annotated[int, Between(0, 1)] | None, MayLack()] = None


Lease = Annotated[int, Between(1000, 5000)]


@by_name(tag=("do", "part"))
@dataclass(frozen=True)
class Part:
    n: Annotated[int, Between(0, 3)]

    def contradiction(self) -> str:
        """What its fields say against each other."""
        return "an n that is not two, found 2" if self.n == 2 else ""


@by_format(3, 4, 6)
@dataclass(frozen=True)
class Grown:
    a: Annotated[int, Between(0, 9)]
    b: Annotated[int, Between(0, 9), Since(4)] = 0
    c: Annotated[int, Between(0, 9), Since(6)] = 0


class NarrowError(PeerError):
    pass


def refuse(value: object) -> int:
    raise NarrowError("no") if value == 1 else BusyError("not now")


@by_position
@dataclass(frozen=True)
class Told:
    a: Annotated[int, Spelled(refuse, int)]


WHOLE, GROWN, LAYER = Codec(Whole, "whole"), Codec(Grown, "grown"), Codec(Layer, "layer", UsageError, "look again")
EITHER: Codec[Whole | Part] = Codec.any_of("word", Whole, Part)
HONEST = Whole(
    b"xy", (Layer(1), Layer(2, "bc")), (True, None), Options(0.5), ("::1", 80), 1.5, {"x": [1]}, "int8", None
)
HEADER = {
    "do": "whole",
    "id": b"xy",
    "layers": [[1, "a"], [2, "bc"]],
    "pair": [True, None],
    "options": {"heat": 0.5, "kind": "plain"},
    "at": "[::1]:80",
    "lease_ms": 1500,
    "rest": {"x": [1]},
    "wire": "int8",
    "hint": None,
}


def test_what_is_written_is_what_is_declared_and_comes_back() -> None:
    assert msgpack.unpackb(WHOLE.pack(HONEST)) == HEADER
    assert list(WHOLE.header(HONEST)) == list(HEADER)
    assert WHOLE.unpack_untrusted(WHOLE.pack(HONEST), 500) == HONEST
    assert EITHER.read_untrusted(EITHER.header(HONEST)) == HONEST
    assert EITHER.read_untrusted(EITHER.header(Part(1))) == Part(1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"id": b"xyz"}, "expected 0 or 2 bytes at whole.id, found 3 bytes"),
        ({"id": "xy"}, "expected 0 or 2 bytes at whole.id, found 'xy'"),
        ({"layers": [[1, "a"], [10, "a"]]}, r"expected a number from 0 to 9 at whole.layers\[1\].start, found 10"),
        ({"layers": [[True, "a"]]}, r"a number from 0 to 9 at whole.layers\[0\].start, found True"),
        ({"layers": [[1.0, "a"]]}, r"a number from 0 to 9 at whole.layers\[0\].start, found 1.0"),
        ({"layers": [[1, "a\n"]]}, r"printable text of 1 to 4 characters at whole.layers\[0\].name, found 'a\\n'"),
        ({"layers": [[1, ""]]}, r"text of 1 to 4 characters at whole.layers\[0\].name"),
        ({"layers": [[1, "a", 3]]}, r"expected 2 fields at whole.layers\[0\], found a list of 3"),
        ({"layers": [{}]}, r"expected 2 fields at whole.layers\[0\], found a map of 0"),
        ({"layers": [[1, "a"]] * 4}, "expected a list of at most 3 at whole.layers, found a list of 4"),
        ({"layers": b"ab"}, "expected a list of at most 3 at whole.layers, found 2 bytes"),
        ({"pair": [1, 2]}, r"expected true or false at whole.pair\[0\], found 1"),
        ({"pair": [True, 6]}, r"from -5 to 5 at whole.pair\[1\], found 6"),
        ({"pair": [True]}, "expected a list of 2 at whole.pair"),
        ({"options": {"heat": math.nan, "kind": "plain"}}, "from 0 to 2 at whole.options.heat, found nan"),
        ({"options": {"heat": math.inf, "kind": "plain"}}, "from 0 to 2 at whole.options.heat, found inf"),
        ({"options": {"heat": True, "kind": "plain"}}, "from 0 to 2 at whole.options.heat, found True"),
        ({"options": {"heat": 1, "kind": "wild"}}, "one of 'plain', 'tree' at whole.options.kind, found 'wild'"),
        ({"options": {"heat": 1}}, "expected a value at whole.options.kind, found none"),
        ({"options": {"heat": 1, "kind": "tree", "x": 1}}, "expected only heat, kind, note at whole.options"),
        ({"at": "nowhere"}, "expected an address like host:port, found 'nowhere' at whole.at"),
        ({"lease_ms": 999}, "from 1000 to 5000 at whole.lease_ms, found 999"),
        ({"rest": {"a": 1, "b": 2, "c": 3}}, "a map of at most 2 entries at whole.rest, found a map of 3"),
        ({"wire": "int4"}, "one of 'int8', 'fp8' at whole.wire, found 'int4'"),
        ({"hint": 2}, "from 0 to 1 at whole.hint, found 2"),
        ({"do": "part"}, "expected 'whole' at whole.do, found 'part'"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], told: str) -> None:
    with pytest.raises(PeerError, match=f"{told}.*; update the older side$") as caught:
        WHOLE.read_untrusted({**HEADER, **change})
    assert type(caught.value) is PeerError


def test_what_may_lack_has_its_default_and_others_are_asked_for() -> None:
    for name in HEADER:
        less = {key: value for key, value in HEADER.items() if key != name}
        if name == "hint":
            assert WHOLE.read_untrusted(less) == HONEST
        else:
            with pytest.raises(PeerError, match=f"at whole.{name}, found [nN]one"):
                WHOLE.read_untrusted(less)
    assert WHOLE.read_untrusted({**HEADER, "later": 1}) == HONEST


def test_a_whole_number_stands_for_a_float_as_it_came() -> None:
    options = WHOLE.read_untrusted({**HEADER, "options": {"heat": 1, "kind": "tree"}}).options
    assert type(options.heat) is int and msgpack.packb(options.heat) == b"\x01"


def test_kinds_are_told_apart_by_their_tag() -> None:
    for tag in ("other", None, 1, [], b"whole"):
        with pytest.raises(PeerError, match="expected one of 'whole', 'part' at word.do"):
            EITHER.read_untrusted({**HEADER, "do": tag})
    with pytest.raises(PeerError, match="expected an n that is not two, found 2 at word; update"):
        EITHER.read_untrusted({"do": "part", "n": 2})
    with pytest.raises(PeerError, match="expected a map at word, found a list of 0"):
        EITHER.read_untrusted([])


def test_a_format_is_the_oldest_that_says_everything() -> None:
    for record, written in (
        (Grown(1), [3, 1]),
        (Grown(1, 2), [4, 1, 2]),
        (Grown(1, 0, 3), [6, 1, 0, 3]),
    ):
        assert GROWN.write(record) == written and GROWN.read_untrusted(written) == record
    for wrong in ([3, 1, 2], [4, 1], [5, 1, 2], [True, 1], [], {}, [3]):
        with pytest.raises(PeerError):
            GROWN.read_untrusted(wrong)


def test_errors_are_of_one_type_and_say_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"expected a number from 0 to 9 at layer.start, found -1; look again"):
        LAYER.read_untrusted([-1, "a"])
    for data in (b"", b"\xc1", b"\x92\x01", b"\x92\x01\xa1a\x00", bytes(50), "text", None, b"\x91" * 20):
        with pytest.raises(UsageError):
            LAYER.unpack_untrusted(data, 40)


def test_an_error_that_says_more_passes() -> None:
    with pytest.raises(NarrowError, match="^no$"):
        Codec(Told, "told").read_untrusted([1])
    with pytest.raises(PeerError, match="expected not now at told.a"):
        Codec(Told, "told").read_untrusted([2])


def test_one_encoding_is_asked_for_where_it_counts() -> None:
    loose = b"\x92\xcc\x01\xa1a"
    assert LAYER.unpack_untrusted(loose, 9) == Layer(1)
    with pytest.raises(UsageError, match="one encoding"):
        LAYER.unpack_untrusted(loose, 9, one_encoding=True)
    assert LAYER.unpack_untrusted(LAYER.pack(Layer(1)), 9, one_encoding=True) == Layer(1)


@pytest.mark.parametrize("kind", [int, str, bytes, float, tuple[bool, ...], Mapping[str, object], dict, set[int]])
def test_nothing_is_declared_without_a_bound(kind: object) -> None:
    @by_position
    @dataclass(frozen=True)
    class Loose:
        field: object

    Loose.__annotations__["field"] = kind
    with pytest.raises(TypeError, match="expected a bound|expected a form"):
        Codec(Loose, "loose").read_untrusted([1])


def test_a_class_says_how_it_travels_and_may_lack_only_what_has_a_default() -> None:
    @dataclass(frozen=True)
    class Formless:
        a: bool

    @by_name()
    @dataclass(frozen=True)
    class Lacking:
        a: Annotated[bool, MayLack()]

    with pytest.raises(TypeError, match="declared by_position"):
        Codec(Formless, "x").read_untrusted([True])
    with pytest.raises(TypeError, match="expected a default"):
        Codec(Lacking, "x").read_untrusted({})


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
    | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(values, st.sampled_from(sorted(HEADER)))
def test_anything_at_any_place_is_read_or_refused(value: object, name: str) -> None:
    for codec, found in ((WHOLE, {**HEADER, name: value}), (EITHER, value), (GROWN, value), (LAYER, value)):
        try:
            codec.read_untrusted(found)
        except (PeerError, UsageError):
            pass


@given(st.binary(max_size=60), st.integers(0, 100), st.integers(0, 7))
def test_changed_bytes_are_read_or_refused(noise: bytes, at: int, bit: int) -> None:
    packed = bytearray(WHOLE.pack(HONEST))
    packed[at % len(packed)] ^= 1 << bit
    for data in (bytes(packed), bytes(packed[:at]) + noise, noise):
        try:
            found = WHOLE.unpack_untrusted(data, 400)
        except PeerError:
            continue
        assert WHOLE.unpack_untrusted(WHOLE.pack(found), 400) == found
