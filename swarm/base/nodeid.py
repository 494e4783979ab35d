"""Names of nodes: a node is its Ed25519 public key, 32 raw bytes everywhere inside the program."""

from __future__ import annotations

from typing import Annotated, Protocol, TypeAlias

from nacl.exceptions import BadSignatureError, CryptoError
from nacl.signing import VerifyKey

from swarm.base.bounds import Exactly
from swarm.base.errors import PeerError

NODE_ID_BYTES = 32
SIGNATURE_BYTES = 64

NodeId: TypeAlias = Annotated[bytes, Exactly(NODE_ID_BYTES)]
"""32 raw bytes of an Ed25519 public key."""

SignatureBytes: TypeAlias = Annotated[bytes, Exactly(SIGNATURE_BYTES)]
"""An Ed25519 signature (RFC 8032)."""

TEXT_CHARS = 64
SHORT_CHARS = 8


class Signer(Protocol):
    """A node's identity: its name, and what signs in that name."""

    @property
    def id(self) -> NodeId: ...

    def sign(self, data: bytes) -> bytes: ...


def id_text(node: NodeId) -> str:
    """The full text form: 64 hexadecimal digits in lower case, as receipts name keys too."""
    return node.hex()


def short_id(node: NodeId) -> str:
    """The first 8 characters of `id_text`: for people, never for a decision."""
    return id_text(node)[:SHORT_CHARS]


def parse_id_untrusted(text: object) -> NodeId:
    """Read the text form. Raises PeerError unless it is exactly what `id_text` writes."""
    if not isinstance(text, str) or len(text) != TEXT_CHARS:
        raise PeerError(f"expected a node id of {TEXT_CHARS} hexadecimal digits, found {str(text)[:60]!r}")
    try:
        node = bytes.fromhex(text)
    except ValueError as exc:
        raise PeerError(f"expected a node id in hexadecimal, found {text!r}") from exc
    if id_text(node) != text:
        raise PeerError(f"expected a node id in its one canonical form, found {text!r}")
    return node


def check_id_untrusted(value: object) -> NodeId:
    """`value` as a node id if it is 32 bytes; raises PeerError otherwise."""
    if not isinstance(value, bytes | bytearray) or len(value) != NODE_ID_BYTES:
        raise PeerError(f"expected a node id of {NODE_ID_BYTES} bytes, found {type(value).__name__}")
    return bytes(value)


def verify(node: NodeId, signature: bytes, data: bytes) -> bool:
    """Whether `signature` (64 bytes, Ed25519, RFC 8032) over `data` was made by `node`. Never raises."""
    if len(node) != NODE_ID_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        VerifyKey(node).verify(data, signature)
    except (BadSignatureError, CryptoError, ValueError):
        return False
    return True
