"""API keys from a file: one per line, `name:secret` or just `secret`; # begins a comment."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from swarm.base.errors import UsageError

MIN_SECRET_CHARS = 16
MAX_FILE_BYTES = 1 << 20


def load_keys(path: Path) -> tuple[tuple[str, bytes], ...]:
    """(name, SHA-256 of the secret) per key; the secrets themselves are not kept.

    Raises UsageError when the file cannot be read, is empty, or a secret is too short to be one.
    """
    try:
        data = path.read_bytes()[: MAX_FILE_BYTES + 1]
    except OSError as exc:
        raise UsageError(f"cannot read the API keys in {path}: {exc.strerror}; give a readable file") from exc
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"expected at most {MAX_FILE_BYTES} bytes of API keys, found more in {path}")
    keys: list[tuple[str, bytes]] = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        name, _, secret = line.rpartition(":")
        if len(secret) < MIN_SECRET_CHARS:
            raise UsageError(
                f"expected a secret of at least {MIN_SECRET_CHARS} characters in line {number} of {path}, found "
                f"{len(secret)}; make one with: openssl rand -hex 24"
            )
        keys.append((name or f"key-{len(keys) + 1}", hashlib.sha256(secret.encode()).digest()))
    if not keys:
        raise UsageError(f"expected at least one API key in {path}, found none; put one secret per line")
    return tuple(keys)


def find_user(header: str | None, keys: tuple[tuple[str, bytes], ...]) -> str | None:
    """Name of the key in an Authorization header; None when it is none of ours. Time does not depend on the key."""
    scheme, _, secret = (header or "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    digest = hashlib.sha256(secret.strip().encode("utf-8", "surrogateescape")).digest()
    found = None
    for name, known in keys:
        if hmac.compare_digest(digest, known):
            found = name
    return found
