"""Openings and news survive their bytes; anything else is a PeerError."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import PeerError
from swarm.model.rows import Layout
from swarm.model.sampler import Sampling
from swarm.ring.opening import (
    OpenRun,
    RingSignal,
    StagePlan,
    encode_open,
    encode_word,
    parse_word_untrusted,
)
from swarm.ring.words import parse_down_untrusted

OPENING = OpenRun(
    run=b"r" * 16,
    epoch=2,
    requester=b"q" * 32,
    model="ab" * 32,
    wire="bfloat16",
    layout=Layout(64, 512),
    sampling=Sampling(temperature=0.5, seed=7),
    stages=(StagePlan(b"a" * 32, (("h", 1),), 0, 3), StagePlan(b"b" * 32, (), 3, 6)),
    keep=9,
    index=1,
)
junk = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=6)
    | st.binary(max_size=40)
    | st.lists(st.none(), max_size=3)
)


def test_an_opening_survives_its_bytes() -> None:
    header = msgpack.unpackb(msgpack.packb(encode_open(OPENING).header))
    assert parse_down_untrusted(header) == OPENING


@given(st.sampled_from(sorted(encode_open(OPENING).header)), junk)
def test_a_wrong_field_is_refused_or_harmless(key: str, value: object) -> None:
    header = {**encode_open(OPENING).header, key: value}
    try:
        read = parse_down_untrusted(header)
    except PeerError:
        return
    assert 0 <= read.index < len(read.stages) and read.keep <= read.layout.context


@given(st.dictionaries(st.text(max_size=8), junk, max_size=6))
def test_other_maps_are_refused(header: dict[str, object]) -> None:
    with pytest.raises(PeerError):
        parse_down_untrusted(header)
    with pytest.raises(PeerError):
        parse_word_untrusted(header)


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [[b"a" * 32, [], 3, 3]],
        [[b"a" * 32, [], 0, 3], [b"b" * 32, [], 4, 6]],
        [[b"a", [], 0, 3]],
        [[b"a" * 32, [["h", 0]], 0, 3]],
    ],
)
def test_plans_with_gaps_or_nonsense_are_refused(stages: list[object]) -> None:
    with pytest.raises(PeerError):
        parse_down_untrusted({**encode_open(OPENING).header, "stages": stages, "index": 0})


def test_news_survives_its_bytes() -> None:
    word = RingSignal("opened", b"r" * 16, 1, ({"device": "cpu"},), b"n" * 32, True, 2, "because", {"accepts": [b"x"]})
    assert parse_word_untrusted(msgpack.unpackb(msgpack.packb(encode_word(word).header))) == word
