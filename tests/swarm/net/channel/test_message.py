from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import PeerError
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.message import Envelope, Message, Mode, pack_header, unpack_untrusted

LIMITS = ChannelLimits(header_depth=5, header_items=200, header_bytes=20_000)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.binary(max_size=20),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
HEADERS = st.dictionaries(st.text(max_size=8), VALUES, max_size=4)


@given(st.text(min_size=1, max_size=64), HEADERS, st.sampled_from(Mode), st.integers(0, 2**32 - 1), st.binary())
def test_round_trip(kind: str, header: dict[str, Any], mode: Mode, call: int, body: bytes) -> None:
    limits = ChannelLimits(header_depth=50)
    envelope = Envelope(Message(kind, header, body), mode, call)
    assert unpack_untrusted(pack_header(envelope), body, limits) == envelope


@given(st.binary(max_size=300))
def test_random_bytes_raise_the_one_error(data: bytes) -> None:
    try:
        unpack_untrusted(data, b"", LIMITS)
    except PeerError:
        pass


@given(HEADERS, st.data())
def test_mutated_headers_raise_the_one_error(header: dict[str, Any], data: st.DataObject) -> None:
    packed = bytearray(pack_header(Envelope(Message("kind", header))))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        envelope = unpack_untrusted(packed, b"", LIMITS)
    except PeerError:
        return
    assert isinstance(envelope.message.kind, str) and isinstance(envelope.message.header, dict)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return {"a": value}


@pytest.mark.parametrize(
    "fields",
    [
        {"not": "a list"},
        ["kind", 0, 0],
        ["kind", 0, 0, {}, 1],
        ["", 0, 0, {}],
        ["k" * 65, 0, 0, {}],
        [7, 0, 0, {}],
        ["kind", 4, 0, {}],
        ["kind", True, 0, {}],
        ["kind", 0, -1, {}],
        ["kind", 0, 2**32, {}],
        ["kind", 0, 0.0, {}],
        ["kind", 0, 0, []],
        ["kind", 0, 0, {b"bytes": 1}],
        ["kind", 0, 0, {"a": msgpack.ExtType(5, b"x")}],
        ["kind", 0, 0, {"a": msgpack.Timestamp(1)}],
        ["kind", 0, 0, nested(5)],
        ["kind", 0, 0, nested(400)],
        ["kind", 0, 0, nested(3000)],
        ["kind", 0, 0, {"a": [0] * 300}],
        ["kind", 0, 0, {"a": [[[]] * 150] * 150}],
        ["kind", 0, 0, {"a": bytes(30_000)}],
    ],
)
def test_refused(fields: Any) -> None:
    packer = msgpack.Packer()
    try:
        data = packer.pack(fields)
    except ValueError:  # too deep for the packer: write it by hand
        data = (
            msgpack.packb(["kind", 0, 0])[: -0 or None].replace(b"\x93", b"\x94")
            + b"\x81\xa1a"
            + b"\x91" * 3000
            + b"\x01"
        )
    with pytest.raises(PeerError):
        unpack_untrusted(data, b"", LIMITS)


def test_depth_just_within_the_limit_passes() -> None:
    assert unpack_untrusted(msgpack.packb(["kind", 0, 0, nested(4)]), b"", LIMITS).message.header == nested(4)


def test_what_msgpack_cannot_hold_is_refused_when_packed() -> None:
    for value in (object(), 2**64, {1, 2}):
        with pytest.raises(PeerError, match="cannot be packed"):
            pack_header(Envelope(Message("kind", {"a": value})))
