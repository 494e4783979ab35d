"""Codes that two machines show: who may ask, how often, for how long, and what somebody in between can do about it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import BusyError, PeerError
from swarm.mesh import pairing
from swarm.mesh.pairing import (
    TRIES,
    TRIES_IN_S,
    WAITS_S,
    Door,
    asked,
    code_of,
    commitment,
    decided,
    keeps,
    shared,
    waits,
)

HERE, ANN, BOB, SWARM, NONCE = b"m" * 32, b"a" * 32, b"b" * 32, b"s" * 10, b"n" * 32
bits = st.binary(min_size=32, max_size=32)


def at_code(now: float = 0.0) -> Door:
    return shared(asked(Door(), ANN, "node", NONCE, now), ANN, HERE, SWARM, b"x" * 32, now)


def test_one_newcomer_is_attended_to_at_a_time() -> None:
    door = asked(Door(), ANN, "node", NONCE, 0.0)
    with pytest.raises(BusyError, match="another newcomer"):
        asked(door, BOB, "node", NONCE, 1.0)
    door = asked(door, BOB, "node", NONCE, pairing.GONE_S)  # the first has not been heard of for so long
    with pytest.raises(PeerError, match="nobody said yes within 120 seconds"):
        waits(door, ANN, pairing.GONE_S)


def test_the_owners_word_counts_for_the_code_that_was_shown_and_while_it_is() -> None:
    door = at_code()
    assert door.pairing is not None
    code = door.pairing.code
    assert decided(door, ANN, "another", True, 1.0) == door and decided(door, BOB, code, True, 1.0) == door
    assert decided(door, ANN, code, True, WAITS_S) == door
    yes = decided(door, ANN, code, True, 1.0)
    assert waits(yes, ANN, 2.0).pairing.agreed is True  # type: ignore[union-attr]
    with pytest.raises(PeerError, match="said no"):
        waits(decided(door, ANN, code, False, 1.0), ANN, 2.0)
    again = asked(yes, ANN, "node", NONCE, 3.0)  # who asks anew is shown anew
    assert again.pairing is not None and again.pairing.agreed is None and not again.pairing.code


def test_a_code_stands_from_the_first_nonce_and_for_two_minutes() -> None:
    door = at_code()
    with pytest.raises(PeerError, match="a second"):
        shared(door, ANN, HERE, SWARM, b"y" * 32, 1.0)
    with pytest.raises(PeerError):
        shared(door, BOB, HERE, SWARM, b"y" * 32, 1.0)
    for now in range(1, int(WAITS_S), 5):
        door = waits(door, ANN, float(now))
    with pytest.raises(PeerError, match="nobody said yes"):
        waits(door, ANN, WAITS_S)


def test_so_many_codes_in_an_hour_whoever_asks() -> None:
    door = Door()
    for number in range(TRIES):
        door = asked(door, bytes([number]) * 32, "node", NONCE, number * 60.0)
    with pytest.raises(BusyError, match=f"{TRIES} codes within the hour"):
        asked(door, ANN, "node", NONCE, 700.0)
    door = asked(door, ANN, "node", NONCE, TRIES_IN_S)
    assert len(door.begun) == TRIES


def test_who_begins_again_without_an_end_uses_up_tries() -> None:
    """An attacker that sees a code it cannot use and asks anew, unseen, must not have a million goes."""
    door = Door()
    for number in range(TRIES):
        door = asked(door, ANN, "node", NONCE, float(number))
    with pytest.raises(BusyError):
        asked(door, ANN, "node", NONCE, 60.0)


@given(bits, bits, bits, bits, st.binary(min_size=10, max_size=10))
def test_both_sides_have_one_code_and_everything_in_it_counts(
    member: bytes, newcomer: bytes, mine: bytes, theirs: bytes, swarm: bytes
) -> None:
    code = code_of(swarm, member, newcomer, mine, theirs)
    assert len(code) == 6 and code.isdecimal()
    said = commitment(swarm, member, newcomer, mine)
    assert keeps(said, swarm, member, newcomer, mine)
    for place in range(5):
        parts = [swarm, member, newcomer, mine, theirs]
        parts[place] = bytes([parts[place][0] ^ 1]) + parts[place][1:]
        if place < 4:
            assert not keeps(said, *parts[:4])
    assert not keeps(said, swarm, newcomer, member, mine) or member == newcomer


def test_codes_of_one_in_between_meet_by_chance_alone() -> None:
    """20,000 attempts with keys of its own on both sides: as often as six digits meet."""
    met = 0
    for number in range(20_000):
        nonce = number.to_bytes(32, "big")
        met += code_of(SWARM, HERE, BOB, nonce, NONCE) == code_of(SWARM, BOB, ANN, NONCE, nonce)
    assert met <= 2
