from __future__ import annotations

import pytest

from swarm.base.errors import PeerError
from swarm.net.channel.record import LAST_NONCE, Opener, Sealer

KEY = bytes(range(32))


def test_each_record_opens_once_and_in_order() -> None:
    sealer, opener = Sealer(KEY), Opener(KEY)
    records = [sealer.seal(b"x" * size) for size in (1, 1, 500)]
    assert records[0] != records[1]
    assert opener.open_untrusted(records[0]) == b"x"
    for wrong in (records[0], records[2], records[1][:-1], records[1] + b"\0", b"", bytes(16)):
        with pytest.raises(PeerError, match="changed, replayed or reordered"):
            opener.open_untrusted(wrong)
    assert opener.open_untrusted(memoryview(bytearray(records[1]))) == b"x"
    assert opener.open_untrusted(records[2]) == b"x" * 500


def test_every_flip_is_refused() -> None:
    record = Sealer(KEY).seal(b"abc")
    for position in range(len(record)):
        for bit in range(8):
            changed = bytearray(record)
            changed[position] ^= 1 << bit
            with pytest.raises(PeerError):
                Opener(KEY).open_untrusted(changed)
    with pytest.raises(PeerError):
        Opener(KEY[::-1]).open_untrusted(record)


def test_a_nonce_is_never_used_twice() -> None:
    sealer, opener = Sealer(KEY), Opener(KEY)
    sealer._nonce = opener._nonce = LAST_NONCE
    assert opener.open_untrusted(sealer.seal(b"last")) == b"last"
    with pytest.raises(PeerError, match="used up"):
        sealer.seal(b"one more")
    with pytest.raises(PeerError, match="used up"):
        opener.open_untrusted(bytes(20))
