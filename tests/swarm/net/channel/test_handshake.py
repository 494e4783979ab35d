from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.base.errors import PeerError
from swarm.net.channel.handshake import (
    CONTEXT,
    MAGIC,
    MESSAGE_BYTES,
    PREAMBLE,
    VERSION,
    ChannelKeys,
    Handshake,
    check_preamble_untrusted,
)
from swarm.net.channel.noise import PROTOCOL, NoiseXX
from swarm.net.channel.record import Opener, Sealer
from swarm.net.identity import Identity

VECTORS = json.loads((Path(__file__).parent / "vectors" / "noise_xx.json").read_text())
LEFT, RIGHT = Identity.from_seed(bytes(32)), Identity.from_seed(bytes([1]) * 32)
LEFT_KEYS, RIGHT_KEYS = ChannelKeys.make(LEFT, 1000), ChannelKeys.make(RIGHT, 2000)


def side(role: str, vector: dict[str, Any]) -> NoiseXX:
    static, ephemeral = (bytes.fromhex(VECTORS["keys"][f"{role}_{kind}"]) for kind in ("static", "ephemeral"))
    return NoiseXX(role == "init", static, bytes.fromhex(vector["prologue"]), ephemeral)


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=["cacophony", "noise-c"])
def test_handshake_and_records_give_the_published_bytes(vector: dict[str, Any]) -> None:
    assert VECTORS["protocol"].encode() == PROTOCOL
    first, second = side("init", vector), side("resp", vector)
    writer, reader = first, second
    payloads = [bytes.fromhex(p) for p in VECTORS["payloads"]]
    ciphertexts = [bytes.fromhex(c) for c in vector["ciphertexts"]]
    for payload, ciphertext in zip(payloads[:3], ciphertexts[:3], strict=True):
        assert writer.write(payload) == ciphertext
        assert reader.read_untrusted(ciphertext) == payload
        writer, reader = reader, writer
    assert first.hash.hex() == second.hash.hex() == vector["handshake_hash"]
    assert first.split() == second.split()
    # The transport messages that follow are in turn, the responder's first.
    keys = first.split()[::-1]
    sealers, openers = [Sealer(key) for key in keys], [Opener(key) for key in keys]
    for turn, (payload, ciphertext) in enumerate(zip(payloads[3:], ciphertexts[3:], strict=True)):
        assert sealers[turn % 2].seal(payload) == ciphertext
        assert openers[turn % 2].open_untrusted(ciphertext) == payload


def test_a_message_out_of_turn_or_cut_short_is_refused() -> None:
    vector = VECTORS["vectors"][0]
    with pytest.raises(PeerError, match="out of turn"):
        side("resp", vector).write(b"")
    left, right = side("init", vector), side("resp", vector)
    with pytest.raises(PeerError, match="not finished"):
        left.split()
    with pytest.raises(PeerError, match="too short"):
        right.read_untrusted(left.write(b"")[:31])


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20))
@settings(max_examples=20)
def test_records_cross_in_both_directions(payloads: list[bytes]) -> None:
    left, right = (end.established for end in shake())
    there, back = Sealer(left.send_key), Sealer(right.send_key)
    here, far = Opener(left.receive_key), Opener(right.receive_key)
    for payload in payloads:
        assert far.open_untrusted(there.seal(payload)) == payload
        assert here.open_untrusted(back.seal(payload)) == payload


class Pair:
    def __init__(self, left: Handshake, right: Handshake, messages: list[bytes]) -> None:
        self.left, self.right, self.messages = left, right, messages


def shake(left: Handshake | None = None, right: Handshake | None = None) -> tuple[Any, Any]:
    left = left or Handshake(LEFT_KEYS, initiator=True, expect=RIGHT.id)
    right = right or Handshake(RIGHT_KEYS, initiator=False)
    right.read_untrusted(left.write())
    left.read_untrusted(right.write())
    right.read_untrusted(left.write())
    return left, right


def test_both_ends_learn_each_other() -> None:
    left, right = (side.established for side in shake())
    assert (left.remote, left.instance, left.message_bytes) == (RIGHT.id, RIGHT_KEYS.instance, 2000)
    assert (right.remote, right.instance, right.message_bytes) == (LEFT.id, LEFT_KEYS.instance, 1000)
    assert left.hash == right.hash and len(left.hash) == 32
    assert (left.send_key, left.receive_key) == (right.receive_key, right.send_key)
    again, _ = shake()
    assert again.established.send_key != left.send_key


def test_message_sizes_are_as_documented() -> None:
    left, right = Handshake(LEFT_KEYS, True), Handshake(RIGHT_KEYS, False)
    sizes = []
    for writer, reader in ((left, right), (right, left), (left, right)):
        message = writer.write()
        sizes.append(len(message))
        reader.read_untrusted(message)
    assert tuple(sizes) == MESSAGE_BYTES == (32, 204, 172)


def test_another_identity_is_refused_before_this_side_names_itself() -> None:
    left = Handshake(LEFT_KEYS, initiator=True, expect=Identity.generate().id)
    right = Handshake(RIGHT_KEYS, initiator=False)
    right.read_untrusted(left.write())
    with pytest.raises(PeerError, match="expected node .* found node"):
        left.read_untrusted(right.write())
    assert left.established is None


def test_a_static_key_signed_by_another_is_refused() -> None:
    stolen = ChannelKeys(RIGHT.id, LEFT_KEYS.static, LEFT.sign(CONTEXT + b"x"), bytes(8), 1)
    with pytest.raises(PeerError, match="could not prove"):
        shake(right=Handshake(stolen, initiator=False))
    transplanted = ChannelKeys(LEFT.id, RIGHT_KEYS.static, LEFT_KEYS.signature, bytes(8), 1)
    with pytest.raises(PeerError, match="could not prove"):
        shake(left=Handshake(transplanted, initiator=True))


def test_a_node_does_not_meet_itself() -> None:
    with pytest.raises(PeerError, match="this node itself"):
        shake(left=Handshake(LEFT_KEYS, True), right=Handshake(LEFT_KEYS, False))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_flip_of_any_byte_of_the_handshake_is_refused(number: int) -> None:
    for position in range(MESSAGE_BYTES[number]):
        left, right = Handshake(LEFT_KEYS, True, RIGHT.id), Handshake(RIGHT_KEYS, False)
        with pytest.raises(PeerError):
            for step, (writer, reader) in enumerate(((left, right), (right, left), (left, right))):
                message = bytearray(writer.write())
                if step == number:
                    message[position] ^= 1 << position % 8
                reader.read_untrusted(bytes(message))
        assert left.established is None or number == 2
        assert right.established is None


def test_a_replayed_handshake_is_refused() -> None:
    left, right = Handshake(LEFT_KEYS, True, RIGHT.id), Handshake(RIGHT_KEYS, False)
    first = left.write()
    right.read_untrusted(first)
    second = right.write()
    left.read_untrusted(second)
    third = left.write()
    right.read_untrusted(third)
    victim = Handshake(RIGHT_KEYS, False)
    victim.read_untrusted(first)
    victim.write()
    with pytest.raises(PeerError, match="damaged or forged"):
        victim.read_untrusted(third)
    dialler = Handshake(LEFT_KEYS, True, RIGHT.id)
    dialler.write()
    with pytest.raises(PeerError, match="damaged or forged"):
        dialler.read_untrusted(second)


@given(st.binary(max_size=300))
@settings(max_examples=50)
def test_random_bytes_raise_the_one_error(data: bytes) -> None:
    right = Handshake(RIGHT_KEYS, False)
    with pytest.raises(PeerError):
        right.read_untrusted(data[:32].ljust(32, b"\0"))
        right.write()
        right.read_untrusted(data.ljust(MESSAGE_BYTES[2], b"\0")[: MESSAGE_BYTES[2]])


def test_low_order_points_are_refused() -> None:
    for point in (bytes(32), bytes([1]) + bytes(31)):
        right = Handshake(RIGHT_KEYS, False)
        with pytest.raises(PeerError):
            right.read_untrusted(point)
            right.write()


def test_preamble() -> None:
    check_preamble_untrusted(PREAMBLE.pack(MAGIC, VERSION))
    with pytest.raises(PeerError, match="another protocol"):
        check_preamble_untrusted(b"GET / HT")
    with pytest.raises(PeerError, match=r"version 1, found 2; update this node"):
        check_preamble_untrusted(PREAMBLE.pack(MAGIC, 2))
    with pytest.raises(PeerError, match=r"version 1, found 0; update that node"):
        check_preamble_untrusted(PREAMBLE.pack(MAGIC, 0))
