"""Noise XX without I/O: the one pattern of the Noise Protocol Framework (revision 34) that a channel needs.

Noise_XX_25519_ChaChaPoly_SHA256 over the primitives of `cryptography` and `hashlib`: a hundred lines of our own, where
the libraries that offer all patterns are unkept or hide the keys of Split() (docs/architecture.md). The published
vectors hold every byte (tests/swarm/net/channel/test_handshake.py). Section numbers are those of the specification.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from swarm.base.errors import PeerError

PROTOCOL = b"Noise_XX_25519_ChaChaPoly_SHA256"
KEY_BYTES = 32
TAG_BYTES = 16
_NONCE = struct.Struct("<4xQ")
_MESSAGES = (("e",), ("e", "ee", "s", "es"), ("s", "se"))
"""The tokens of XX (7.5), the initiator's message first."""


class NoiseXX:
    """One side: `write` and `read_untrusted` in turn, three messages in all; then `split` and `hash`.

    `ephemeral`: 32 bytes for the ephemeral private key, for test vectors alone; fresh ones otherwise.
    """

    def __init__(self, initiator: bool, static: bytes, prologue: bytes, ephemeral: bytes | None = None) -> None:
        self.remote_static = b""
        self.hash = PROTOCOL  # exactly 32 bytes long, so it stands for its own digest (5.2)
        self._chain = PROTOCOL
        self._cipher: ChaCha20Poly1305 | None = None
        self._nonce = 0
        self._initiator = initiator
        self._static = X25519PrivateKey.from_private_bytes(static)
        self._ephemeral = (
            X25519PrivateKey.generate() if ephemeral is None else X25519PrivateKey.from_private_bytes(ephemeral)
        )
        self._remote_ephemeral = b""
        self._step = 0
        self._mix_hash(prologue)

    def write(self, payload: bytes) -> bytes:
        """This side's next message with `payload` in it. Raises PeerError for an unusable key of the other side."""
        self._check_turn(writing=True)
        parts: list[bytes] = []
        for token in _MESSAGES[self._step]:
            if token == "e":
                parts.append(self._ephemeral.public_key().public_bytes_raw())
                self._mix_hash(parts[-1])
            elif token == "s":
                parts.append(self._encrypt(self._static.public_key().public_bytes_raw()))
            else:
                self._mix_dh(token)
        parts.append(self._encrypt(payload))
        self._step += 1
        return b"".join(parts)

    def read_untrusted(self, message: bytes) -> bytes:
        """The payload of the other side's next message. Raises PeerError unless it is genuine and whole."""
        self._check_turn(writing=False)
        at = 0
        for token in _MESSAGES[self._step]:
            if token == "e":
                self._remote_ephemeral, at = self._cut(message, at, KEY_BYTES)
                self._mix_hash(self._remote_ephemeral)
            elif token == "s":
                sealed, at = self._cut(message, at, KEY_BYTES + TAG_BYTES)
                self.remote_static = self._decrypt(sealed)
            else:
                self._mix_dh(token)
        payload = self._decrypt(message[at:])
        self._step += 1
        return payload

    def split(self) -> tuple[bytes, bytes]:
        """After the third message: the keys of the initiator's and of the responder's direction (5.2, Split)."""
        if self._step < len(_MESSAGES):
            raise PeerError("the handshake is not finished")
        return _hkdf(self._chain, b"")

    # -- the specification's symmetric state (5.2) and cipher state (5.1)

    def _check_turn(self, writing: bool) -> None:
        if self._step >= len(_MESSAGES) or (self._step % 2 == 0) != (self._initiator == writing):
            raise PeerError("a handshake message came out of turn; the connection is closed")

    def _cut(self, message: bytes, at: int, size: int) -> tuple[bytes, int]:
        if len(message) < at + size:
            raise PeerError("a handshake message is too short; the connection is closed")
        return message[at : at + size], at + size

    def _mix_hash(self, data: bytes) -> None:
        self.hash = hashlib.sha256(self.hash + data).digest()

    def _mix_dh(self, token: str) -> None:
        """`ee`, `es`, `se`: the first letter is the initiator's key, the second the responder's."""
        own, other = (0, 1) if self._initiator else (1, 0)
        private = self._ephemeral if token[own] == "e" else self._static
        public = self._remote_ephemeral if token[other] == "e" else self.remote_static
        try:
            shared = private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as exc:  # a point of low order: the shared secret would be zero
            raise _damaged() from exc
        self._chain, key = _hkdf(self._chain, shared)
        self._cipher, self._nonce = ChaCha20Poly1305(key), 0

    def _encrypt(self, plaintext: bytes) -> bytes:
        if self._cipher is not None:
            plaintext = self._cipher.encrypt(_NONCE.pack(self._nonce), plaintext, self.hash)
            self._nonce += 1
        self._mix_hash(plaintext)
        return plaintext

    def _decrypt(self, ciphertext: bytes) -> bytes:
        plaintext = ciphertext
        if self._cipher is not None:
            try:
                plaintext = self._cipher.decrypt(_NONCE.pack(self._nonce), ciphertext, self.hash)
            except InvalidTag as exc:
                raise _damaged() from exc
            self._nonce += 1
        self._mix_hash(ciphertext)
        return plaintext


def _damaged() -> PeerError:
    return PeerError("a handshake message is damaged or forged; the connection is closed")


def _hkdf(chain: bytes, material: bytes) -> tuple[bytes, bytes]:
    """Noise's HKDF with two outputs (4.3)."""
    key = hmac.digest(chain, material, "sha256")
    first = hmac.digest(key, b"\1", "sha256")
    return first, hmac.digest(key, first + b"\2", "sha256")
