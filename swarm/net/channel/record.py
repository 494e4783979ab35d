"""Records: what travels after the handshake.

A record on the wire is a 16-bit big-endian length and that many bytes of ChaCha20-Poly1305 ciphertext, with the
Noise transport nonce (four zero bytes and a 64-bit little-endian counter) and no associated data. The cipher is
driven through `cryptography` directly because it takes views and copies nothing; Noise's published vectors hold it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from swarm.base.errors import PeerError

TAG_BYTES = 16
LENGTH_BYTES = 2
MAX_CIPHERTEXT = 65535
MAX_PLAINTEXT = MAX_CIPHERTEXT - TAG_BYTES
LAST_NONCE = 2**64 - 2
"""2^64 - 1 is reserved by Noise for rekeying."""

_NONCE = struct.Struct("<4xQ")


class Sealer:
    """Encrypts the records of one direction, each nonce once."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = 0

    def seal(self, plaintext: bytes | bytearray | memoryview) -> bytes:
        """The record's ciphertext, without its length. Raises PeerError when the nonces are used up."""
        if self._nonce > LAST_NONCE:
            raise PeerError("the keys of this channel are used up; connect again")
        sealed = self._cipher.encrypt(_NONCE.pack(self._nonce), plaintext, None)
        self._nonce += 1
        return sealed


class Opener:
    """Decrypts the records of one direction in order; anything replayed, reordered or changed is refused."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._nonce = 0

    def open_untrusted(self, ciphertext: bytes | bytearray | memoryview) -> bytes:
        """The record's plaintext. Raises PeerError unless it is the very next record of the peer."""
        if self._nonce > LAST_NONCE:
            raise PeerError("the keys of this channel are used up; connect again")
        try:
            plaintext = self._cipher.decrypt(_NONCE.pack(self._nonce), ciphertext, None)
        except InvalidTag as exc:
            raise PeerError("a record was changed, replayed or reordered on the way; the connection is closed") from exc
        self._nonce += 1
        return plaintext


class RecordReader:
    """Cuts what arrives into records: the kernel writes into `space`, `take_untrusted` opens them.

    `buffer_bytes` may be raised at any time; a record that would not fit is refused by its length.
    """

    def __init__(self, key: bytes, buffer_bytes: int) -> None:
        self.buffer_bytes = buffer_bytes
        self._opener = Opener(key)
        self._buffer = bytearray()
        self._filled = 0

    @property
    def space(self) -> memoryview:
        """Where the next bytes go. Memory is taken when something is about to arrive, not before."""
        if len(self._buffer) < self.buffer_bytes:
            self._buffer = self._buffer[: self._filled] + bytearray(self.buffer_bytes - self._filled)
        return memoryview(self._buffer)[self._filled :]

    def release(self) -> None:
        """Let the buffer go: nothing more is read, and what refers to this reader may live on for a while."""
        self.buffer_bytes = self._filled = 0
        self._buffer = bytearray()

    def take_untrusted(self, count: int) -> Iterator[bytes]:
        """Every whole record after `count` more bytes; what is left of them waits at the buffer's front.

        The caller may stop early only when it closes. Raises PeerError.
        """
        self._filled += count
        start, most = 0, min(MAX_CIPHERTEXT, len(self._buffer) - LENGTH_BYTES)
        with memoryview(self._buffer) as view:
            while self._filled - start >= LENGTH_BYTES:
                length = int.from_bytes(view[start : start + LENGTH_BYTES], "big")
                if not TAG_BYTES < length <= most:
                    raise PeerError(f"expected a record of {TAG_BYTES + 1} to {most} bytes, found {length}")
                end = start + LENGTH_BYTES + length
                if end > self._filled:
                    break
                yield self._opener.open_untrusted(view[start + LENGTH_BYTES : end])
                start = end
            rest = self._filled - start
            if start and rest:
                view[:rest] = view[start : self._filled]
        self._filled = rest
