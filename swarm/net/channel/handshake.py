"""The opening of a channel: Noise XX between two node identities, as a state machine without I/O.

Noise_XX_25519_ChaChaPoly_SHA256 (Noise Protocol Framework, revision 34) is in `swarm.net.channel.noise`. The X25519
static key of a process is signed once by the node's Ed25519 key, and each side sends that signature in its encrypted
payload; Noise proves that the sender holds the static key, the signature says whose it is.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from swarm.base.errors import PeerError
from swarm.base.nodeid import NODE_ID_BYTES, SIGNATURE_BYTES, NodeId, Signer, short_id, verify
from swarm.net.channel.noise import KEY_BYTES, TAG_BYTES, NoiseXX

VERSION = 1
MAGIC = b"\x8fswarm"
"""Starts every channel; its first byte is no letter, so that one port can tell it from HTTP."""
PREAMBLE = struct.Struct(">6sH")
CONTEXT = b"wanswarm channel static key v1"

_PAYLOAD = struct.Struct(f">{NODE_ID_BYTES}s{SIGNATURE_BYTES}s8sI")
_KEY, _TAG = KEY_BYTES, TAG_BYTES
MESSAGE_BYTES = (_KEY, _KEY + _KEY + _TAG + _PAYLOAD.size + _TAG, _KEY + _TAG + _PAYLOAD.size + _TAG)
"""Exact sizes of the three handshake messages."""


@dataclass(frozen=True)
class ChannelKeys:
    """A process's side of every handshake: fresh static key, its signature, and what it tells its peers.

    `instance` (8 random bytes) tells two processes, or two lives of one node, apart.
    """

    node: NodeId
    static: bytes
    signature: bytes
    instance: bytes
    message_bytes: int

    @classmethod
    def make(cls, signer: Signer, message_bytes: int) -> ChannelKeys:
        private = X25519PrivateKey.generate()
        signature = signer.sign(CONTEXT + private.public_key().public_bytes_raw())
        return cls(signer.id, private.private_bytes_raw(), signature, secrets.token_bytes(8), message_bytes)


@dataclass(frozen=True)
class Established:
    """What both ends know after the handshake. `send_key` and `receive_key` are the two keys of Noise's Split()."""

    remote: NodeId
    instance: bytes
    message_bytes: int
    send_key: bytes
    receive_key: bytes
    hash: bytes


def check_preamble_untrusted(data: bytes) -> None:
    """Raises PeerError unless `data` (8 bytes) is this protocol in this version."""
    magic, version = PREAMBLE.unpack(data)
    if magic != MAGIC:
        raise StrangerError("expected a wanswarm node, found another protocol on that port; check the address")
    if version != VERSION:
        older = "that node" if version < VERSION else "this node"
        raise VersionError(f"expected protocol version {VERSION}, found {version}; update {older}")


class VersionError(PeerError):
    """The other side speaks another version of the protocol."""


class StrangerError(PeerError):
    """Something else answers than the node that was expected."""


class Handshake:
    """One side of one handshake: alternate `write` and `read_untrusted` until `established` is set.

    `expect` is the identity that the initiator wants to meet; another one ends the handshake before this side has
    named itself.
    """

    def __init__(self, keys: ChannelKeys, initiator: bool, expect: NodeId | None = None) -> None:
        self._keys = keys
        self._expect = expect
        self._step = 0
        self._remote: tuple[NodeId, bytes, int] | None = None
        self._initiator = initiator
        self._noise = NoiseXX(initiator, keys.static, PREAMBLE.pack(MAGIC, VERSION))
        self.established: Established | None = None

    @property
    def next_bytes(self) -> int:
        """Size of the handshake message that comes next, in either direction."""
        return MESSAGE_BYTES[self._step]

    def write(self) -> bytes:
        """The next message of this side. Raises PeerError if the other side's key is unusable."""
        payload = b""
        if self._step:
            keys = self._keys
            payload = _PAYLOAD.pack(keys.node, keys.signature, keys.instance, keys.message_bytes)
        message = self._noise.write(payload)
        self._advance()
        return message

    def read_untrusted(self, message: bytes) -> None:
        """Take the other side's next message. Raises PeerError if it is not genuine, or not the identity expected."""
        if len(message) != self.next_bytes:
            raise PeerError(f"expected a handshake message of {self.next_bytes} bytes, found {len(message)}")
        payload = self._noise.read_untrusted(message)
        if self._step:
            self._check_payload_untrusted(payload)
        self._advance()

    def _check_payload_untrusted(self, payload: bytes) -> None:
        node, signature, instance, message_bytes = _PAYLOAD.unpack(payload)
        if not verify(node, signature, CONTEXT + self._noise.remote_static):
            raise PeerError("a peer could not prove the node id that it claims")
        if self._expect is not None and node != self._expect:
            raise StrangerError(f"expected node {short_id(self._expect)} at that address, found node {short_id(node)}")
        if node == self._keys.node:
            raise StrangerError("that address is this node itself, or a node with a copy of its key")
        self._remote = (node, instance, message_bytes)

    def _advance(self) -> None:
        self._step += 1
        if self._step < len(MESSAGE_BYTES):
            return
        assert self._remote is not None
        first, second = self._noise.split()
        send, receive = (first, second) if self._initiator else (second, first)
        self.established = Established(*self._remote, send_key=send, receive_key=receive, hash=self._noise.hash)
