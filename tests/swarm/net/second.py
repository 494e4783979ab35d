"""A second implementation of docs/protocol.md, written from that page alone: no code of the product, no Noise library.

Blocking sockets and the standard library, plus `cryptography` for the primitives and `msgpack` for headers.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
from typing import Any

import msgpack
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

PREAMBLE = b"\x8fswarm\x00\x01"


def nonce(number: int) -> bytes:
    return bytes(4) + number.to_bytes(8, "little")


class Symmetric:
    """Noise's SymmetricState."""

    def __init__(self, name: bytes, prologue: bytes) -> None:
        self.h = self.ck = name.ljust(32, b"\0") if len(name) <= 32 else hashlib.sha256(name).digest()
        self.k = b""
        self.n = 0
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self.h = hashlib.sha256(self.h + data).digest()

    def hkdf(self, material: bytes) -> tuple[bytes, bytes]:
        key = hmac.digest(self.ck, material, "sha256")
        first = hmac.digest(key, b"\x01", "sha256")
        return first, hmac.digest(key, first + b"\x02", "sha256")

    def mix_key(self, private: X25519PrivateKey, public: bytes) -> None:
        self.ck, self.k = self.hkdf(private.exchange(X25519PublicKey.from_public_bytes(public)))
        self.n = 0

    def seal(self, data: bytes) -> bytes:
        if self.k:
            data = ChaCha20Poly1305(self.k).encrypt(nonce(self.n), data, self.h)
            self.n += 1
        self.mix_hash(data)
        return data

    def open(self, data: bytes) -> bytes:
        plain = data
        if self.k:
            plain = ChaCha20Poly1305(self.k).decrypt(nonce(self.n), data, self.h)
            self.n += 1
        self.mix_hash(data)
        return plain


def public(private: X25519PrivateKey) -> bytes:
    return private.public_key().public_bytes_raw()


class SecondNode:
    """Dials a node, shakes hands, and exchanges whole and long messages."""

    def __init__(self, seed: bytes, static: bytes, ephemeral: bytes, instance: bytes) -> None:
        self.identity = Ed25519PrivateKey.from_private_bytes(seed)
        self.static = X25519PrivateKey.from_private_bytes(static)
        self.ephemeral = X25519PrivateKey.from_private_bytes(ephemeral)
        self.instance = instance
        self.id = self.identity.public_key().public_bytes_raw()
        self.remote = b""

    def payload(self) -> bytes:
        signature = self.identity.sign(b"wanswarm channel static key v1" + public(self.static))
        return self.id + signature + self.instance + struct.pack(">I", 1 << 26)

    def check(self, payload: bytes, static: bytes) -> None:
        self.remote = payload[:32]
        key = Ed25519PublicKey.from_public_bytes(self.remote)
        key.verify(payload[32:96], b"wanswarm channel static key v1" + static)
        assert len(payload) == 108

    # the initiator's three steps

    def first(self) -> bytes:
        self.state = Symmetric(b"Noise_XX_25519_ChaChaPoly_SHA256", PREAMBLE)
        self.state.mix_hash(public(self.ephemeral))
        return public(self.ephemeral) + self.state.seal(b"")

    def second(self, message: bytes) -> None:
        self.their_ephemeral = message[:32]
        self.state.mix_hash(self.their_ephemeral)
        self.state.mix_key(self.ephemeral, self.their_ephemeral)
        static = self.state.open(message[32:80])
        self.state.mix_key(self.ephemeral, static)
        self.check(self.state.open(message[80:]), static)

    def third(self) -> bytes:
        sealed = self.state.seal(public(self.static))
        self.state.mix_key(self.static, self.their_ephemeral)
        message = sealed + self.state.seal(self.payload())
        send, receive = self.state.hkdf(b"")
        self.send_cipher, self.receive_cipher = ChaCha20Poly1305(send), ChaCha20Poly1305(receive)
        self.sent = self.received = 0
        return message

    # records

    def record(self, plaintext: bytes) -> bytes:
        sealed = self.send_cipher.encrypt(nonce(self.sent), plaintext, None)
        self.sent += 1
        return struct.pack(">H", len(sealed)) + sealed

    def open_record(self, ciphertext: bytes) -> bytes:
        plain = self.receive_cipher.decrypt(nonce(self.received), ciphertext, None)
        self.received += 1
        return plain

    def dial(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, timeout=20)
        self.sock.sendall(PREAMBLE + self.first())
        assert self.read(8) == PREAMBLE
        self.second(self.read(204))
        self.sock.sendall(self.third())

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def next_record(self) -> bytes:
        return self.open_record(self.read(int.from_bytes(self.read(2), "big")))

    def send(self, kind: str, mode: int, call: int, values: dict[str, Any], body: bytes, chunk: int = 20_000) -> None:
        header = msgpack.packb([kind, mode, call, values])
        if len(header) + len(body) <= chunk:
            self.sock.sendall(self.record(struct.pack(">BI", 1, len(header)) + header + body))
            return
        lane, data = 7, header + body
        self.sock.sendall(self.record(struct.pack(">BBII", 2, lane, len(header), len(body)) + data[:chunk]))
        for start in range(chunk, len(data), chunk):
            self.sock.sendall(self.record(bytes((3, lane)) + data[start : start + chunk]))

    def receive(self) -> tuple[list[Any], bytes]:
        """The next message, with pings answered and padding dropped on the way."""
        lanes: dict[int, tuple[int, int, bytearray]] = {}
        while True:
            record = self.next_record()
            if record[0] == 1:
                size = int.from_bytes(record[1:5], "big")
                return msgpack.unpackb(record[5 : 5 + size]), record[5 + size :]
            if record[0] == 2:
                _, lane, header_bytes, body_bytes = struct.unpack(">BBII", record[:10])
                lanes[lane] = (header_bytes, header_bytes + body_bytes, bytearray(record[10:]))
            elif record[0] == 3:
                lane = record[1]
                lanes[lane][2].extend(record[2:])
            elif record[0] == 5:
                self.pong(record)
                continue
            else:
                assert record[0] == 0
                continue
            header_bytes, size, data = lanes[lane]
            if len(data) == size:
                return msgpack.unpackb(bytes(data[:header_bytes])), bytes(data[header_bytes:])

    def pong(self, record: bytes) -> None:
        series, number, last, _, fresh, _, _ = struct.unpack(">x8sHH16s16sII", record)
        if number < last:
            answer = struct.pack(">B8sHH16s16sII", 5, series, number + 1, last, fresh, os.urandom(16), 7, 8)
            self.sock.sendall(self.record(answer))
