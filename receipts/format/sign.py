"""Signed envelopes: DSSE v1 (https://github.com/secure-systems-lab/dsse) with Ed25519.

The signature covers the pre-authentication encoding of payload type and payload, so bytes signed as one kind of
statement can never be read as another. `keyid` is the signer's public key in hex.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from receipts.format.canonical import emit, parse_untrusted
from receipts.format.errors import ReceiptError, Refusal

Sign = Callable[[bytes], bytes]
"""Ed25519 over the given bytes: 64 bytes."""

MAX_PAYLOAD = 1 << 20


def sha256(data: bytes) -> str:
    """Hex SHA-256: the form of every digest in a receipt."""
    return hashlib.sha256(data).hexdigest()


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE pre-authentication encoding: the exact bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True)
class SignedEnvelope:
    """One signed payload. `key` is 32 bytes, `signature` 64 bytes."""

    payload_type: str
    payload: bytes
    key: bytes
    signature: bytes

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the payload: how other statements name this one."""
        return sha256(self.payload)

    def as_json(self) -> dict[str, Any]:
        signature = {"keyid": self.key.hex(), "sig": base64.b64encode(self.signature).decode()}
        payload = base64.b64encode(self.payload).decode()
        return {"payload": payload, "payloadType": self.payload_type, "signatures": [signature]}

    def to_bytes(self) -> bytes:
        """Canonical JSON: the form in which envelopes travel and are stored."""
        return emit(self.as_json())

    def check(self) -> None:
        """Raise ReceiptError(SIGNATURE) unless the key signed exactly this type and payload."""
        try:
            crypto_sign_open(self.signature + pae(self.payload_type, self.payload), self.key)
        except BadSignatureError as exc:
            raise ReceiptError(
                Refusal.SIGNATURE, f"signature of {self.key.hex()[:16]} does not fit its {self.payload_type}"
            ) from exc


def seal(payload_type: str, payload: bytes, key: bytes, sign: Sign) -> SignedEnvelope:
    """Sign a payload. Raises ReceiptError(SIGNATURE) when the signer returns anything but a valid signature."""
    envelope = SignedEnvelope(payload_type, payload, key, sign(pae(payload_type, payload)))
    if len(envelope.signature) != 64:
        raise ReceiptError(Refusal.SIGNATURE, f"signer gave {len(envelope.signature)} bytes instead of 64")
    return envelope


def envelope_from_json_untrusted(value: Any) -> SignedEnvelope:
    """Read one envelope's JSON form; exactly one signature, base64 without slack. Raises ReceiptError(SHAPE)."""
    if not isinstance(value, dict) or set(value) != {"payload", "payloadType", "signatures"}:
        raise ReceiptError(Refusal.SHAPE, "an envelope has payload, payloadType and signatures, nothing else")
    signatures, kind = value["signatures"], value["payloadType"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise ReceiptError(Refusal.SHAPE, "an envelope has exactly one signature")
    (entry,) = signatures
    if not isinstance(entry, dict) or set(entry) != {"keyid", "sig"}:
        raise ReceiptError(Refusal.SHAPE, "a signature has keyid and sig, nothing else")
    if not isinstance(kind, str) or not 0 < len(kind) <= 200 or not kind.isascii():
        raise ReceiptError(Refusal.SHAPE, "payloadType is not a short ASCII string")
    key = entry["keyid"]
    if not isinstance(key, str) or len(key) != 64 or not set(key) <= set("0123456789abcdef"):
        raise ReceiptError(Refusal.SHAPE, "keyid is not a public key of 64 lower-case hex digits")
    payload = _base64_untrusted(value["payload"], "payload", MAX_PAYLOAD)
    signature = _base64_untrusted(entry["sig"], "sig", 64)
    if len(signature) != 64:
        raise ReceiptError(Refusal.SHAPE, f"a signature has 64 bytes, found {len(signature)}")
    return SignedEnvelope(kind, payload, bytes.fromhex(key), signature)


def envelope_untrusted(data: Any) -> SignedEnvelope:
    """One envelope from a peer's bytes, signature checked. Raises ReceiptError."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ReceiptError(Refusal.SHAPE, f"an envelope is bytes, found {type(data).__name__}")
    envelope = envelope_from_json_untrusted(parse_untrusted(bytes(data), 2 * MAX_PAYLOAD, 4))
    envelope.check()
    return envelope


def _base64_untrusted(text: Any, name: str, limit: int) -> bytes:
    if not isinstance(text, str) or len(text) > limit * 4 // 3 + 4:
        raise ReceiptError(Refusal.SHAPE, f"{name} is not base64 of at most {limit} bytes")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ReceiptError(Refusal.SHAPE, f"{name} is not base64") from exc
    if base64.b64encode(data).decode() != text:
        raise ReceiptError(Refusal.SHAPE, f"{name} has slack bits in its base64")
    return data
