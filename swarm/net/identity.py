"""The Ed25519 key that a node is known by, kept in one private file of its state folder."""

from __future__ import annotations

import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from nacl.signing import SigningKey

from swarm.base.errors import SwarmError, UsageError
from swarm.base.files import write_whole
from swarm.base.nodeid import (
    NODE_ID_BYTES,
    SIGNATURE_BYTES,
    NodeId,
    check_id_untrusted,
    id_text,
    parse_id_untrusted,
    short_id,
    verify,
)

__all__ = [
    "NODE_ID_BYTES",
    "SIGNATURE_BYTES",
    "Identity",
    "NodeId",
    "check_id_untrusted",
    "id_text",
    "parse_id_untrusted",
    "short_id",
    "verify",
]

KEY_FILE = "identity.key"
_HEADER = "wanswarm-ed25519-seed-1 "


class IdentityError(SwarmError):
    """The key file of a node cannot be read, written or trusted."""


@dataclass(frozen=True)
class Identity:
    """A node's own key. `id` is the public half (32 bytes); the private half never leaves this object."""

    id: NodeId
    _key: SigningKey = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature (64 bytes) over `data`; callers put a context string in front of what they sign."""
        return self._key.sign(data).signature

    @property
    def text(self) -> str:
        return id_text(self.id)

    @property
    def short(self) -> str:
        return short_id(self.id)

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of a 32-byte seed (RFC 8032 private key). Raises UsageError for another length."""
        if len(seed) != 32:
            raise UsageError(f"expected a seed of 32 bytes, found {len(seed)}")
        key = SigningKey(seed)
        return cls(bytes(key.verify_key), key)

    @classmethod
    def generate(cls) -> Identity:
        """A new identity that is kept nowhere."""
        return cls.from_seed(secrets.token_bytes(32))

    @classmethod
    def load_or_create(cls, state_dir: Path) -> Identity:
        """The identity kept in `state_dir`, made (mode 0600, atomically) if there is none.

        Raises IdentityError when the folder cannot be written or the file is damaged or open to others.
        """
        path = state_dir / KEY_FILE
        try:
            state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not path.exists():
                identity = cls.generate()
                line = _HEADER + bytes(identity._key).hex() + "\n"
                write_whole(path, line.encode("ascii"), replace=False)
            return cls.from_seed(_read_seed(path))
        except OSError as exc:
            reason = exc.strerror or str(exc)
            raise IdentityError(
                f"cannot keep the node's key in {state_dir}: {reason}; free space or choose another folder with --state"
            ) from exc


def _read_seed(path: Path) -> bytes:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise IdentityError(f"expected {path} to be private (mode 600), found {mode:o}; run: chmod 600 {path}")
    text = path.read_bytes()[:200].decode("ascii", "replace")
    digits = text.removeprefix(_HEADER).strip()
    try:
        seed = bytes.fromhex(digits)
    except ValueError:
        seed = b""
    if not text.startswith(_HEADER) or len(seed) != 32:
        raise IdentityError(f"expected a node key in {path}, found something else; move the file away to get a new key")
    return seed
