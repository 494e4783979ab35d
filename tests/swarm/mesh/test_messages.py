"""The bytes of membership messages."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import PeerError
from swarm.mesh.action import SendDelta
from swarm.mesh.messages import (
    DELTA,
    DIGEST,
    HINTS,
    MAX_NAMES,
    WANT,
    check_revocation,
    delta_message,
    digest_message,
    names_message,
    parse_delta_untrusted,
    parse_digest_untrusted,
    parse_hints_untrusted,
    parse_want_untrusted,
    sign_suspicion,
)
from swarm.mesh.state import Suspicion
from swarm.mesh.table import DIGEST_BYTES, Held
from swarm.net.channel.message import Message
from tests.swarm.mesh.make import ANN, BOB, MEMBERSHIP, NOW, signed

u64 = st.integers(0, 2**64 - 1)
blames = st.lists(st.tuples(u64, u64, u64), max_size=5).map(tuple)


@given(st.lists(st.tuples(u64, u64), max_size=9).map(tuple), blames)
def test_names_come_back(hints: tuple[tuple[int, int], ...], said: tuple[tuple[int, int, int], ...]) -> None:
    assert parse_hints_untrusted(names_message(HINTS, hints, said)) == (hints, said)
    keys = tuple(key for key, _ in hints)
    assert parse_want_untrusted(names_message(WANT, keys, said)) == (keys, said)


def test_a_delta_comes_back_with_ages() -> None:
    said = sign_suspicion(7, 8, ANN.id, MEMBERSHIP.swarm, ANN.sign)
    notice = MEMBERSHIP.revoke(MEMBERSHIP.issue(NOW))
    message = delta_message(SendDelta(b"", (Held.of(signed(), 90.0),), (said,), (notice,)), 100.0)
    parcel = parse_delta_untrusted(message, MEMBERSHIP)
    assert parcel.records == ((10.0, signed().wire),)
    assert parcel.suspicions == (said,) and parcel.revocations == (notice,)


def test_what_is_not_proved_is_refused() -> None:
    honest = sign_suspicion(7, 8, ANN.id, MEMBERSHIP.swarm, ANN.sign)
    notice = MEMBERSHIP.revoke(MEMBERSHIP.issue(NOW))
    forged = (
        SendDelta(b"", (), (Suspicion(7, 9, ANN.id, honest.wire),)),
        SendDelta(b"", (), (Suspicion(7, 8, BOB.id, honest.wire),)),
        SendDelta(b"", (), (Suspicion(7, 8, ANN.id, b""),)),
        SendDelta(b"", (), (), (replace(notice, id=b""),)),
    )
    for action in forged:
        with pytest.raises(PeerError):
            parse_delta_untrusted(delta_message(action, 0.0), MEMBERSHIP)
    with pytest.raises(PeerError, match="not made by a member"):
        check_revocation(replace(notice, expires=notice.expires + 1), MEMBERSHIP)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"\xc1", msgpack.packb([]), msgpack.packb([[], []]), msgpack.packb([[], [], 3]), msgpack.packb({})),
        *(
            msgpack.packb([[b"x"], [], []]),
            msgpack.packb([[[0, "text"]], [], []]),
            msgpack.packb([[[-1, b""]], [], []]),
        ),
        *(msgpack.packb([[[2**40, b""]], [], []]), msgpack.packb([[[0, bytes(5000)]], [], []])),
        *(msgpack.packb([[[0, b""]] * 300, [], []]), msgpack.packb([[], [[1, 2, b"", b""]], []])),
        *(msgpack.packb([[], [], [[b"x" * 8, 1.5, bytes(16)]]]), b"\x91" * 5000, bytes(20_000_000)),
    ],
)
def test_malformed_deltas_are_refused(body: bytes) -> None:
    with pytest.raises(PeerError):
        parse_delta_untrusted(Message(DELTA, {}, body), MEMBERSHIP)


@given(st.binary(max_size=200), st.none() | st.integers(-5, 40) | st.text(max_size=3))
def test_names_that_do_not_add_up_are_refused(body: bytes, n: object) -> None:
    for kind, parse, size in ((HINTS, parse_hints_untrusted, 16), (WANT, parse_want_untrusted, 8)):
        try:
            names, said = parse(Message(kind, {"n": n}, body))
        except PeerError:
            continue
        assert type(n) is int and len(names) == n and size * n + 24 * len(said) == len(body)


def test_more_names_than_allowed_are_refused() -> None:
    with pytest.raises(PeerError, match="from 0 to 8192 at names.n, found 8193"):
        parse_want_untrusted(names_message(WANT, tuple(range(MAX_NAMES + 1)), ()))


def test_digests_have_one_size() -> None:
    digest = bytes(range(256)) * 8
    assert parse_digest_untrusted(digest_message(digest)) == digest and len(digest) == DIGEST_BYTES
    with pytest.raises(PeerError):
        parse_digest_untrusted(Message(DIGEST, {}, digest[1:]))
