"""Salted digests: a private value is signed now and can be disclosed later by whoever holds the salt."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Any

from receipts.format.canonical import emit
from receipts.format.sign import sha256


@dataclass(frozen=True)
class Secret:
    """A value whose salted digest stands in a statement. `salt` is 32 random bytes, `value` is JSON."""

    name: str
    salt: bytes
    value: Any

    @property
    def digest(self) -> str:
        """Hex SHA-256 over a fixed label, the name, the salt and the canonical JSON of the value."""
        return sha256(b"wanswarm salted v1\x00" + self.name.encode() + b"\x00" + self.salt + emit(self.value))

    def as_json(self) -> dict[str, Any]:
        """What a disclosure in the receipt says."""
        return {"name": self.name, "salt": self.salt.hex(), "value": self.value}


def derive(secret: bytes, label: str, *numbers: int) -> bytes:
    """A 32-byte salt for one purpose from the run's 32-byte secret (HMAC-SHA-256); one-way, so it may be disclosed."""
    text = label + "".join(f" {number}" for number in numbers)
    return hmac.new(secret, text.encode(), hashlib.sha256).digest()
