"""Envelopes: the published encoding, the strict reader, and agreement with another implementation."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey
from securesystemslib.dsse import Envelope as OtherEnvelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from receipts.format.document import document_untrusted
from receipts.format.errors import ReceiptError, Refusal
from receipts.format.sign import SignedEnvelope, envelope_from_json_untrusted, envelope_untrusted, pae, seal

KEY = SigningKey(b"\x01" * 32)
PUBLIC = bytes(KEY.verify_key)


def signed(payload: bytes = b"hello world", kind: str = "http://example.com/HelloWorld") -> SignedEnvelope:
    return seal(kind, payload, PUBLIC, lambda data: KEY.sign(data).signature)


def test_the_encoding_of_the_specification() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@given(
    st.binary(max_size=300), st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=60)
)
def test_envelopes_survive_the_wire(payload: bytes, kind: str) -> None:
    envelope = signed(payload, kind)
    assert envelope_untrusted(envelope.to_bytes()) == envelope


def test_ours_verifies_elsewhere(ring: Any) -> None:
    """Every envelope of a receipt, by securesystemslib's DSSE."""
    for value in json.loads(ring.receipt)["envelopes"]:
        keyid = value["signatures"][0]["keyid"]
        other = OtherEnvelope.from_dict(json.loads(json.dumps(value)))
        key = SSlibKey(keyid, "ed25519", "ed25519", {"public": keyid})
        assert other.verify([key], 1)
        other.payload += b" "
        with pytest.raises(VerificationError):
            other.verify([key], 1)


def test_theirs_verifies_here() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.signer import CryptoSigner

    signer = CryptoSigner(Ed25519PrivateKey.from_private_bytes(b"\x02" * 32))
    other = OtherEnvelope(b'{"a":1}', "application/vnd.in-toto+json", {})
    other.sign(signer)
    public = signer.public_key.keyval["public"]
    (signature,) = other.signatures.values()
    value = other.to_dict()
    value["signatures"] = [{"keyid": public, "sig": base64.b64encode(bytes.fromhex(signature.signature)).decode()}]
    envelope_from_json_untrusted(value).check()


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.pop("payload"),
        lambda value: value.update(note=1),
        lambda value: value.update(payload=5),
        lambda value: value.update(payload=value["payload"] + "\n"),
        lambda value: value.update(payload=value["payload"].rstrip("=")),
        lambda value: value.update(payload="aGVsbG8gd29ybGR="),  # slack bits set
        lambda value: value.update(payloadType=""),
        lambda value: value.update(payloadType="é"),
        lambda value: value.update(payloadType="x" * 201),
        lambda value: value.update(signatures=[]),
        lambda value: value.update(signatures=value["signatures"] * 2),
        lambda value: value["signatures"][0].update(keyid="AB" * 32),
        lambda value: value["signatures"][0].update(keyid="ab" * 31),
        lambda value: value["signatures"][0].update(sig="AAAA"),
        lambda value: value["signatures"][0].update(note=""),
    ],
)
def test_the_reader_is_strict(change: Any) -> None:
    value = json.loads(json.dumps(signed().as_json()))
    change(value)
    with pytest.raises(ReceiptError) as caught:
        envelope_from_json_untrusted(value)
    assert caught.value.refusal is Refusal.SHAPE


def test_a_signature_is_bound_to_its_type_and_key() -> None:
    good = signed()
    good.check()
    other = bytes(SigningKey(b"\x03" * 32).verify_key)
    for bad in (
        SignedEnvelope(good.payload_type + "2", good.payload, good.key, good.signature),
        SignedEnvelope(good.payload_type, good.payload + b" ", good.key, good.signature),
        SignedEnvelope(good.payload_type, good.payload, other, good.signature),
        SignedEnvelope(good.payload_type, good.payload, good.key, bytes(64)),
        SignedEnvelope(good.payload_type, good.payload, bytes(32), good.signature),
    ):
        with pytest.raises(ReceiptError) as caught:
            bad.check()
        assert caught.value.refusal is Refusal.SIGNATURE


def test_malleable_signatures_are_refused() -> None:
    """S + L is the same point equation; RFC 8032 refuses it, and so must we, or one receipt would have two forms."""
    order = 2**252 + 27742317777372353535851937790883648493
    good = signed()
    high = int.from_bytes(good.signature[32:], "little") + order
    bad = SignedEnvelope(good.payload_type, good.payload, good.key, good.signature[:32] + high.to_bytes(32, "little"))
    with pytest.raises(ReceiptError):
        bad.check()


def test_signers_that_return_something_else_are_seen() -> None:
    with pytest.raises(ReceiptError):
        seal("a", b"b", PUBLIC, lambda data: b"short")


def test_the_readable_copy_is_the_payload(ring: Any) -> None:
    value = json.loads(ring.receipt)
    for statement, envelope in zip(value["readable"], document_untrusted(ring.receipt).envelopes, strict=True):
        assert json.loads(envelope.payload) == statement
