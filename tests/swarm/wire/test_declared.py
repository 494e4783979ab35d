"""Everything that is declared for the wire: what it writes comes back, other bytes are refused with its one error."""

from __future__ import annotations

import importlib
import pkgutil
import typing
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Any, Literal

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import swarm
from swarm.base.address import parse_address_untrusted
from swarm.base.bounds import AtMost, Between, Exactly, OneOf, Spelled
from swarm.base.codec import Codec
from swarm.base.compiled import _fields, _one, _optional, _parts
from swarm.mesh.hello import _token_untrusted
from swarm.mesh.record import NodeRecord, _edges
from swarm.model.rows import Layout
from swarm.model.sampler import Sampling
from swarm.model.shaping import Shaping
from swarm.model.thought import ThoughtLimit
from swarm.net.traversal.messages import _token
from swarm.ring.frame import _pairs
from swarm.ring.opening import OpenRun
from swarm.ring.recomputing import RecomputeRequest
from swarm.ring.witness_service import AUDIT_ANSWER, AUDIT_REQUEST, WitnessRequest
from tests.swarm.wire.messages import token

ROOMS = ("mesh", "net", "ring", "stage", "run", "recheck", "discovery", "node")


def codecs() -> dict[str, Codec[Any]]:
    """Every codec that a module of the rooms that hear peers holds, by module and name."""
    found: dict[str, Codec[Any]] = {}
    for room in ROOMS:
        for module in pkgutil.walk_packages([f"{swarm.__path__[0]}/{room}"], f"swarm.{room}."):
            held = vars(importlib.import_module(module.name))
            mine = {name: value for name, value in held.items() if isinstance(value, Codec)}
            found |= {f"{module.name}.{name}": codec for name, codec in mine.items() if codec not in found.values()}
    return found


CODECS = codecs()
addresses = st.sampled_from(["host.example:1", "203.0.113.7:65535", "[::1]:80", "_a.b-c:9"])
SPELLED: dict[Any, st.SearchStrategy[Any]] = {
    parse_address_untrusted: addresses.map(parse_address_untrusted),
    _edges: st.just(()),  # `mended_record` gives them
    _token_untrusted: st.sampled_from([None, token(), token(once=True, role="guest")]),
    _token: st.from_regex(r"[A-Za-z0-9_-]{16,64}", fullmatch=True),
    _pairs: st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), max_size=64).map(tuple),
}
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5)


def mended_record(said: dict[str, Any]) -> dict[str, Any]:
    n = said["n_layers"]
    for name in ("layers", "claim"):
        said[name] = said[name] and tuple(sorted(min(layer, n) for layer in said[name]))
    first, last = said["layers"]
    return {**said, "overflow": min(said["overflow"], last - first), "edges": ("relay",) * len(said["rtts"])}


def mended_opening(said: dict[str, Any]) -> dict[str, Any]:
    stages = tuple(type(stage)(stage.node, stage.addresses, 3 * i, 3 * i + 3) for i, stage in enumerate(said["stages"]))
    index, keep = said["index"] % len(stages), min(said["keep"], said["layout"].context)
    return {**said, "stages": stages, "index": index, "keep": keep, "lease_s": said["lease_s"] // 1}


def mended_shaping(said: dict[str, Any]) -> dict[str, Any]:
    return {**said, "bias": tuple(sorted(dict(said["bias"]).items())), "ends": tuple(sorted(set(said["ends"])))}


def mended_recompute(said: dict[str, Any]) -> dict[str, Any]:
    heads = said["heads"] or (1,)
    last = max(said["last"], 1)
    return {
        **said,
        "heads": heads,
        "bodies": (0,) * len(heads),
        "wanted": 0,
        "first": min(said["first"], last - 1),
        "scratch": said["scratch"] // 8 * 8,
        "last": last,
    }


MENDED: dict[type, Callable[[dict[str, Any]], dict[str, Any]]] = {
    NodeRecord: mended_record,
    OpenRun: mended_opening,
    RecomputeRequest: mended_recompute,
    WitnessRequest: lambda said: {**said, "order": said["order"] if said["close"] and said["about"] else b"{}"},
    Layout: lambda said: {**said, "scratch": said["scratch"] // 8 * 8},
    Shaping: mended_shaping,
    ThoughtLimit: lambda said: {**said, "opened": said["opened"] or not said["opens"]},
    Sampling: lambda said: {
        **said,
        "top_p": said["top_p"] or 1.0,
        "repetition_penalty": said["repetition_penalty"] or 1.0,
        "constraint": None if said["shaping"] else said["constraint"],
    },
}
"""What fields say to each other, which no bound of one field says."""


def sizes(bound: Any) -> tuple[int, int]:
    return (min(bound.sizes), max(bound.sizes)) if isinstance(bound, Exactly) else (bound.least, min(bound.most, 6))


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Anything that a declaration allows."""
    base, bounds = _parts(annotation)
    spelled = _one(bounds, Spelled)
    if spelled is not None:
        return SPELLED[spelled.read] if spelled.read in SPELLED else values(spelled.form).map(spelled.read)
    if (inner := _optional(base)) is not None:
        return st.none() | values(typing.Annotated[inner, *bounds] if bounds else inner)
    if is_dataclass(base):
        return records(base)
    if typing.get_origin(base) is Literal:
        return st.sampled_from(typing.get_args(base))
    if base is bool:
        return st.booleans()
    between, bound = _one(bounds, Between), _one(bounds, Exactly, AtMost)
    if base is int:
        return st.integers(int(between.low), int(between.high))
    if base is float:
        return st.floats(between.low, between.high, allow_nan=False)
    if base is str and (choice := _one(bounds, OneOf)) is not None:
        return st.sampled_from(choice.texts)
    if base is str:
        return st.text(st.characters(categories=["L", "N"]), min_size=sizes(bound)[0], max_size=sizes(bound)[1])
    if base is bytes and isinstance(bound, Exactly):
        return st.one_of(*(st.binary(min_size=size, max_size=size) for size in bound.sizes))
    if base is bytes:
        return st.binary(min_size=sizes(bound)[0], max_size=sizes(bound)[1])
    origin, args = typing.get_origin(base), typing.get_args(base)
    if origin is tuple and args[-1] is Ellipsis:
        least, most = sizes(bound)
        lists = st.lists(values(args[0]), min_size=least, max_size=most).map(tuple)
        return lists if isinstance(bound, AtMost) else lists.filter(lambda items: len(items) in bound.sizes)
    if origin is tuple:
        return st.tuples(*map(values, args))
    assert issubclass(origin, Mapping)
    return st.dictionaries(st.text(max_size=4), plain, max_size=sizes(bound)[1])


@cache
def records(cls: Any) -> st.SearchStrategy[Any]:
    mended, hints = MENDED.get(cls, lambda said: said), typing.get_type_hints(cls, include_extras=True)
    said = st.fixed_dictionaries({field.name: values(hints[field.name]) for field in _fields(cls)})
    return said.map(lambda found: cls(**mended(found)))


def any_of(codec: Codec[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(*(values(form) for form in codec._forms))


def test_the_rooms_have_their_codecs() -> None:
    names = {name.rsplit(".", 1)[1] for name in CODECS}
    assert {"_RECORD", "_PROOF", "_INVITE", "_HELLO", "_DELTA", "_KNOCK", "_OPEN", "_SIGNAL", "_FRAME"} <= names


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_written_comes_back(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    record = data.draw(any_of(codec))
    packed = codec.pack(record)
    assert codec.unpack_untrusted(packed, len(packed), one_encoding=True) == record


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changed_bytes_are_refused_with_one_error_or_mean_something_else(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    packed = bytearray(codec.pack(data.draw(any_of(codec))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(packed) - 1))
        packed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        if not packed:
            packed = bytearray(b"\xc1")
    try:
        found = codec.unpack_untrusted(packed, 1 << 20)
    except codec._error:
        return
    again = codec.pack(found)
    assert codec.unpack_untrusted(again, len(again)) == found


@pytest.mark.parametrize("name", CODECS)
def test_longer_bytes_and_other_values_are_refused(name: str) -> None:
    codec = CODECS[name]
    maps = () if codec in (AUDIT_REQUEST, AUDIT_ANSWER) else ({1: 2}, {b"a": 1})  # these may lack everything
    for value in (None, True, 1, 1.5, "text", b"bytes", [None] * 40, msgpack.ExtType(1, b"x"), *maps):
        with pytest.raises(codec._error):
            codec.read_untrusted(value)
    with pytest.raises(codec._error):
        codec.unpack_untrusted(b"\xc0\xc0", 9)
