"""Records: one encoding, one signer, bounded fields, tolerant of clocks."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import PeerError
from swarm.mesh.record import (
    CONTEXT,
    MAX_RECORD_BYTES,
    MAX_SKEW_S,
    ClockError,
    parse_record_untrusted,
    peek_record_untrusted,
    sign_record,
)
from tests.swarm.mesh.make import ANN, BOB, MEMBERSHIP, NOW, record, signed

SWARM = MEMBERSHIP.swarm


def forge(position: int, value: Any) -> bytes:
    """A record whose field is `value`, honestly signed: only the parser's bounds stand against it."""
    fields = msgpack.unpackb(msgpack.unpackb(signed().wire)[0])
    fields[position] = value
    payload = msgpack.packb(fields)
    return msgpack.packb([payload, ANN.sign(CONTEXT + payload)])


def test_a_record_comes_back_as_it_was_signed() -> None:
    found = parse_record_untrusted(signed().wire, SWARM, NOW)
    assert found.record == record() and found.wire == signed().wire
    empty = record(addresses=(), claim=None, rtts=(), edges=(), coordinate=(), model=b"", layers=(0, 0), overflow=0)
    assert parse_record_untrusted(sign_record(empty, ANN.sign).wire, SWARM, NOW).record == empty
    assert len(signed().wire) < 600


def test_it_says_how_it_is_connected() -> None:
    found = parse_record_untrusted(signed().wire, SWARM, NOW).record
    assert found.edge_to(b"\x01" * 32) == "relay" and found.edge_to(b"\x02" * 32) == found.edge_to(b"\x03" * 32) == ""
    silent = parse_record_untrusted(signed(edges=()).wire, SWARM, NOW).record
    assert silent.edges == () and silent.edge_to(b"\x01" * 32) == ""


def test_nobody_else_can_sign_it() -> None:
    other = sign_record(record(), BOB.sign)
    with pytest.raises(PeerError, match="not signed by its key"):
        parse_record_untrusted(other.wire, SWARM, NOW)
    assert peek_record_untrusted(other.wire) == record()  # a peek says nothing about the signature


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_every_changed_byte_is_refused(where: int, change: int) -> None:
    wire = bytearray(signed().wire)
    wire[where % len(wire)] ^= change
    with pytest.raises(PeerError):
        parse_record_untrusted(bytes(wire), SWARM, NOW)


@given(
    st.binary(max_size=400) | st.recursive(st.none() | st.integers() | st.binary(max_size=8), st.lists, max_leaves=20)
)
def test_garbage_is_refused_with_one_error_type(garbage: object) -> None:
    try:
        wire = garbage if isinstance(garbage, bytes) else msgpack.packb(garbage)
    except OverflowError:
        return
    for data in (wire, msgpack.packb([wire, bytes(64)]), garbage):
        with pytest.raises(PeerError):
            parse_record_untrusted(data, SWARM, NOW)


@pytest.mark.parametrize(
    ("position", "value"),
    [
        *((0, 4), (1, b"short"), (2, b""), (3, -1), (3, 2**60), (4, 1.5), (5, 3601), (5, 9), (6, 2**64 - 1), (7, b"")),
        *(
            (8, "dead"),
            (9, ["nowhere"]),
            (9, ["h:1"] * 9),
            (10, 1),
            (11, b"x"),
            (12, 4097),
            (13, [5, 4]),
            (13, [0, 31]),
        ),
        *((14, [0]), (15, "x" * 65), (15, "line\nbreak"), (16, b"f32"), (17, [1, 2]), (17, [1, 2, -3]), (18, 11)),
        *((20, 2**61), (24, [[b"x", 1]]), (24, [[bytes(8), 1]] * 17)),
        *((25, b"\x01"), (25, b"\x01\x06"), (25, None), (26, [1, 2]), (26, [10**9] * 5), (27, True)),
        *((29, "\u202e" * 3), (30, None)),
    ],
)
def test_fields_out_of_bounds_are_refused(position: int, value: Any) -> None:
    with pytest.raises(PeerError):
        parse_record_untrusted(forge(position, value), SWARM, NOW)


def test_a_future_format_is_told_apart() -> None:
    with pytest.raises(PeerError, match="expected format 4 at record, found format 5; update the older side"):
        parse_record_untrusted(forge(0, 5), SWARM, NOW)


def test_a_fingerprint_is_one_field_more_and_records_without_are_as_they_were() -> None:
    plain, measured = signed(), signed(fingerprint=bytes(range(32)))
    assert [len(msgpack.unpackb(msgpack.unpackb(one.wire)[0])) for one in (plain, measured)] == [31, 32]
    assert [msgpack.unpackb(msgpack.unpackb(one.wire)[0])[0] for one in (plain, measured)] == [3, 4]
    assert parse_record_untrusted(measured.wire, SWARM, NOW).record.fingerprint == bytes(range(32))
    for wrong in (bytes(31), "x", None, b""):
        fields = msgpack.unpackb(msgpack.unpackb(measured.wire)[0])
        payload = msgpack.packb([*fields[:31], wrong])
        with pytest.raises(PeerError):
            parse_record_untrusted(msgpack.packb([payload, ANN.sign(CONTEXT + payload)]), SWARM, NOW)
    with pytest.raises(PeerError, match="expected 32 fields"):
        parse_record_untrusted(forge(0, 4), SWARM, NOW)


def test_another_encoding_of_the_same_record_is_refused() -> None:
    payload = msgpack.unpackb(signed().wire)[0]
    fields = msgpack.unpackb(payload)
    parts = [msgpack.packb(value) for value in fields]
    parts[5] = b"\xcd" + fields[5].to_bytes(2, "big")  # ttl as uint16, although a byte would do
    longer = payload[: len(payload) - len(b"".join(map(msgpack.packb, fields)))] + b"".join(parts)
    assert msgpack.unpackb(longer) == fields and longer != payload
    with pytest.raises(PeerError, match="one encoding"):
        parse_record_untrusted(msgpack.packb([longer, ANN.sign(CONTEXT + longer)]), SWARM, NOW)
    with pytest.raises(PeerError, match="one encoding"):
        parse_record_untrusted(signed().wire.replace(b"\xc4\x40", b"\xc5\x00\x40", 1), SWARM, NOW)


def test_clocks_may_differ_by_an_hour_and_not_by_a_day() -> None:
    wire = signed().wire
    for offset in (-3600, 3600, -MAX_SKEW_S, MAX_SKEW_S):
        assert parse_record_untrusted(wire, SWARM, NOW + offset)
    with pytest.raises(ClockError, match="signs 24.0 hours ahead of this clock; set the wrong clock"):
        parse_record_untrusted(wire, SWARM, NOW - 86400)
    with pytest.raises(ClockError, match="is 24.0 hours old"):
        parse_record_untrusted(wire, SWARM, NOW + 86400)


def test_a_record_of_another_swarm_is_refused() -> None:
    with pytest.raises(PeerError, match="belongs to another swarm"):
        parse_record_untrusted(signed().wire, bytes(10), NOW)


def test_own_records_are_held_to_the_same_bounds() -> None:
    with pytest.raises(PeerError):
        sign_record(record(device="x" * 65), ANN.sign)
    with pytest.raises(PeerError, match="at most 3072 bytes"):
        sign_record(record(proof=bytes(1800), addresses=tuple((f"{'h' * 250}", 1000 + i) for i in range(8))), ANN.sign)
    with pytest.raises(PeerError):
        parse_record_untrusted(b"x" * (MAX_RECORD_BYTES + 1), SWARM, NOW)
