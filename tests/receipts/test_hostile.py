"""Receipts from strangers: parsing limits, every flipped byte, private values edited, invented runs."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from receipts.check.replay import Replayed
from receipts.check.verdict import Level
from receipts.check.verify import Options, trust_untrusted, verify
from receipts.format.canonical import emit
from receipts.format.document import document_bytes, document_untrusted
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.salt import Secret


def refusal(receipt: bytes, **options: Any) -> Refusal | None:
    return verify(receipt, Options(**options)).refusal


HOSTILE: list[tuple[str, Refusal, bytes]] = [
    ("nothing", Refusal.UNREADABLE, b""),
    ("not json", Refusal.UNREADABLE, b"\x89PNG\r\n\x1a\n"),
    ("not utf-8", Refusal.UNREADABLE, b'{"a":"\xff"}'),
    ("unclosed string", Refusal.UNREADABLE, b'{"a":"' + b'\\"' * 100_000),
    ("unbalanced", Refusal.UNREADABLE, b"[}"),
    ("duplicate key", Refusal.DUPLICATE_KEY, b'{"format":"wanswarm-receipt","version":1,"version":1}'),
    ("duplicate key inside", Refusal.DUPLICATE_KEY, b'{"envelopes":[{"payload":"","payload":""}]}'),
    ("NaN", Refusal.NUMBER, b'{"version":NaN}'),
    ("Infinity", Refusal.NUMBER, b'{"version":-Infinity}'),
    ("float", Refusal.NUMBER, b'{"version":1.0}'),
    ("exponent", Refusal.NUMBER, b'{"version":1e3}'),
    ("2^53", Refusal.NUMBER, b'{"version":9007199254740992}'),
    ("minus zero", Refusal.NUMBER, b'{"version":-0}'),
    ("huge integer", Refusal.NUMBER, b'{"version":' + b"9" * 100_000 + b"}"),
    ("100 MB of nesting", Refusal.SIZE, b"[" * 100_000_000),
    ("nesting", Refusal.NESTING, b"[" * 1_000_000),
    ("nesting, closed", Refusal.NESTING, b"[" * 5000 + b"]" * 5000),
    ("nesting of objects", Refusal.NESTING, b'{"a":' * 5000 + b"1" + b"}" * 5000),
    ("many entries", Refusal.COUNT, b"[" + b"1," * 1_000_000 + b"1]"),
    ("a list", Refusal.SHAPE, b"[]"),
    ("empty object", Refusal.VERSION, b"{}"),
    ("other format", Refusal.VERSION, b'{"format":"other","version":1}'),
    ("unknown version", Refusal.VERSION, b'{"format":"wanswarm-receipt","version":2}'),
    ("version true", Refusal.VERSION, b'{"format":"wanswarm-receipt","version":true}'),
    ("no envelopes field", Refusal.SHAPE, b'{"format":"wanswarm-receipt","version":1}'),
    ("half a surrogate", Refusal.SHAPE, b'{"disclosed":[],"envelopes":["\\ud800"],"format":"wanswarm-receipt",'
     b'"readable":[],"version":1}'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "wanted", "data"), HOSTILE, ids=[name for name, _, _ in HOSTILE])
def test_refused_before_anything_is_believed(name: str, wanted: Refusal, data: bytes) -> None:
    verdict = verify(data)
    assert verdict.refusal is wanted
    assert verdict.exit_code == wanted.exit_code != 0
    assert verdict.level is None and len(verdict.line) < 400


def test_an_empty_list_of_envelopes_never_verifies() -> None:
    verdict = verify(document_bytes([], []), Options(required=Level.WELL_FORMED))
    assert (verdict.refusal, verdict.exit_code) == (Refusal.EMPTY, Refusal.EMPTY.exit_code)


def test_reformatted_or_padded(ring: Any) -> None:
    assert refusal(json.dumps(json.loads(ring.receipt)).encode()) is Refusal.LAYOUT
    assert refusal(ring.receipt + b" ") is Refusal.LAYOUT
    assert refusal(b"\xef\xbb\xbf" + ring.receipt) is Refusal.UNREADABLE


def test_readable_copy_edited(ring: Any) -> None:
    edited = ring.receipt.replace(b'"drafter":"suffix"', b'"drafter":"magic!"')
    assert edited != ring.receipt
    assert refusal(edited) is Refusal.READABLE


def test_unknown_fields(ring: Any) -> None:
    value = json.loads(ring.receipt)
    assert refusal(emit(value | {"note": "x"})) is Refusal.SHAPE
    value["envelopes"][0]["note"] = "x"
    assert refusal(emit(value)) in (Refusal.SHAPE, Refusal.LAYOUT)


def _flip_all(receipt: bytes, positions: Sequence[int], chooser: random.Random) -> list[int]:
    """Positions at which a changed byte was not refused."""
    survived = []
    for position in positions:
        changed = bytearray(receipt)
        changed[position] ^= chooser.randrange(1, 256)
        verdict = verify(bytes(changed))
        if verdict.refusal is None or verdict.exit_code in (0, 3, 4):
            survived.append(position)
    return survived


def test_flipped_bytes_of_every_part_are_refused(rings: Any) -> None:
    receipt = rings("open").receipt
    chooser = random.Random(1)
    # One byte in 97 of a whole ring here, all of them in the soak below.
    assert _flip_all(receipt, range(chooser.randrange(97), len(receipt), 97), chooser) == []


def test_every_flipped_byte_of_a_small_receipt_is_refused(make_ring: Any) -> None:
    receipt = make_ring(stages=1, witnesses=0, addresses=False, text="Hi.", show=("text",)).receipt
    assert _flip_all(receipt, range(len(receipt)), random.Random(3)) == []


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["open", "recovered"])
def test_every_flipped_byte_is_refused(rings: Any, name: str) -> None:
    receipt = rings(name).receipt
    assert _flip_all(receipt, range(len(receipt)), random.Random(2)) == []


def test_every_byte_value_at_places_that_carry_structure(make_ring: Any) -> None:
    receipt = make_ring(stages=1, witnesses=0).receipt
    lines = [index for index, byte in enumerate(receipt) if byte in b"\n"][:6]
    for position in [0, 1, *lines, *(index + 1 for index in lines if index + 1 < len(receipt)), len(receipt) - 2]:
        for value in range(256):
            changed = bytearray(receipt)
            changed[position] = value
            assert (refusal(bytes(changed)) is None) == (value == receipt[position])


def _swap(receipt: bytes, name: str, change: Any) -> bytes:
    document = document_untrusted(receipt)
    disclosed = [Secret(s.name, s.salt, change(s.value)) if s.name == name else s for s in document.disclosed]
    return document_bytes(document.envelopes, disclosed)


@pytest.mark.parametrize(
    ("name", "wanted", "change"),
    [
        ("prompt", Refusal.PROMPT, lambda value: [*value[:-1], value[-1] + 1]),
        ("prompt", Refusal.PROMPT, lambda value: value[:-1]),
        ("tokens", Refusal.TOKENS, lambda value: value | {"tokens": [*value["tokens"][:-1], 7]}),
        ("tokens", Refusal.TOKENS, lambda value: value | {"margins_ppm": [0, *value["margins_ppm"][1:]]}),
        ("text", Refusal.TEXT, lambda value: value + "!"),
        ("address", Refusal.DISCLOSURE, lambda value: value + "1"),
        ("uuid", Refusal.DISCLOSURE, lambda value: value + "1"),
    ],
)
def test_edited_private_values(rings: Any, name: str, wanted: Refusal, change: Any) -> None:
    assert refusal(_swap(rings("open").receipt, name, change)) is wanted


def test_a_prompt_of_another_run(rings: Any) -> None:
    stranger = next(s for s in rings("other").record.secrets if s.name == "prompt")
    assert refusal(rings("plain").receipt, secrets=(stranger,)) is Refusal.PROMPT


class TrueTokens:
    """Recomputation as the real model would: the tokens 100, 101, ... whatever the receipt says."""

    def replay(self, order: Any, prompt: Sequence[int], tokens: Sequence[int]) -> Replayed:
        best = [100 + index for index in range(len(tokens))]
        return Replayed(best, [0.0 if a == b else 3.0 for a, b in zip(best, tokens, strict=True)])


def test_a_run_invented_under_fresh_keys(make_ring: Any, rings: Any) -> None:
    """Its signatures are fine, for whoever makes keys can sign: level 1 and no more, with any witnesses."""
    invented = make_ring(names="invented ", tokens=[9, 9, 9], witnesses=3, show=("prompt", "tokens", "text"))
    verdict = verify(invented.receipt)
    assert (verdict.refusal, verdict.level, verdict.exit_code) == (None, Level.SIGNED, 0)
    below = verify(invented.receipt, Options(required=Level.WITNESSED))
    assert (below.exit_code, below.refusal) == (3, None)
    known = frozenset(party.id for party in rings("plain").parties.values())
    refused = verify(invented.receipt, Options(trust=known))
    assert (refused.refusal, refused.exit_code) == (Refusal.UNTRUSTED, Refusal.UNTRUSTED.exit_code)
    replayed = verify(invented.receipt, Options(replayer=TrueTokens()))
    assert (replayed.refusal, replayed.exit_code) == (Refusal.REPLAY, Refusal.REPLAY.exit_code)


def test_trust_and_a_known_witness_make_level_two(ring: Any) -> None:
    keys = {name: party.id for name, party in ring.parties.items()}
    everyone = frozenset(keys.values())
    assert verify(ring.receipt, Options(trust=everyone)).level is Level.WITNESSED
    without = verify(ring.receipt, Options(trust=everyone - {keys["witness 0"]}, required=Level.WITNESSED))
    assert (without.level, without.exit_code, without.refusal) == (Level.SIGNED, 3, None)
    for name in ("requester", "node 1"):
        assert refusal(ring.receipt, trust=everyone - {keys[name]}) is Refusal.UNTRUSTED


def test_trust_files() -> None:
    key = "ab" * 32
    assert trust_untrusted(f"# friends\n{key.upper()} alice\n\n{'cd' * 32}\n") == {key, "cd" * 32}
    with pytest.raises(ReceiptError, match="line 2"):
        trust_untrusted(f"{key}\nnot a key\n")


class Facts:
    def __init__(self, digest: str = "5a" * 32, n_layers: int = 30, weights: Any = None) -> None:
        import hashlib

        self.digest, self.n_layers = digest, n_layers
        self.weights_digest = weights or (lambda a, b: hashlib.sha256(f"{a}:{b}".encode()).hexdigest())


def test_the_verifiers_own_manifest(ring: Any) -> None:
    assert refusal(ring.receipt, model=Facts()) is None
    assert refusal(ring.receipt, model=Facts(digest="00" * 32)) is Refusal.MANIFEST
    assert refusal(ring.receipt, model=Facts(n_layers=28)) is Refusal.LAYERS_BEYOND
    assert refusal(ring.receipt, model=Facts(weights=lambda a, b: "00" * 32)) is Refusal.WEIGHTS


@pytest.mark.timeout(60)
def test_the_worst_input_is_refused_quickly() -> None:
    """Not a benchmark: a quadratic parser would take hours here."""
    for data in (
        b'"\\' * 4_000_000,
        b'{"' * 4_000_000,
        b"[[]," * 90_000,
        b'{"a":[' * 1_000_000,
        b"[" + b'"a",' * 390_000,
    ):
        assert verify(data).refusal is not None
