"""API keys from a file: one per line, `name:secret` or just `secret`, then limits; # begins a comment.

ann:0123456789abcdef  requests=60/min tokens=200000/day at-once=2
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, replace
from pathlib import Path

from swarm.base.errors import UsageError

MIN_SECRET_CHARS = 16
MAX_FILE_BYTES = 1 << 20
_LIMIT = re.compile(r"(requests)=(\d{1,9})/min|(tokens)=(\d{1,15})/day|(at-once)=(\d{1,6})")


@dataclass(frozen=True)
class KeyLimits:
    """What a key may use; None: as much as the gateway has.

    requests_per_minute  requests that begin runs, in any 60 seconds
    tokens_per_day       prompt and answer, in any 24 hours; an answer counts with all that it may become while it runs
    at_once              runs that are under way or wait
    """

    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    at_once: int | None = None


@dataclass(frozen=True)
class ApiKey:
    """A key by its name and the SHA-256 of its secret."""

    name: str
    digest: bytes
    limits: KeyLimits = KeyLimits()


def load_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file; the secrets themselves are not kept.

    Raises UsageError when the file cannot be read, is empty, a secret is too short to be one, a name stands twice, or
    a limit is none.
    """
    try:
        data = path.read_bytes()[: MAX_FILE_BYTES + 1]
    except OSError as exc:
        raise UsageError(f"cannot read the API keys in {path}: {exc.strerror}; give a readable file") from exc
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"expected at most {MAX_FILE_BYTES} bytes of API keys, found more in {path}")
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise UsageError(f"expected API keys as text in UTF-8 in {path}, found other bytes: {exc}") from exc
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(text.splitlines(), 1):
        key, *limits = line.split("#", 1)[0].split() or [""]
        if not key:
            continue
        where = f"line {number} of {path}"
        name, _, secret = key.rpartition(":")
        if len(secret) < MIN_SECRET_CHARS:
            raise UsageError(
                f"expected a secret of at least {MIN_SECRET_CHARS} characters in {where}, found "
                f"{len(secret)}; make one with: openssl rand -hex 24"
            )
        name = name or f"key-{len(keys) + 1}"
        if name in keys:
            raise UsageError(f"expected one key named {name!r}, found another in {where}; give each a name of its own")
        keys[name] = ApiKey(name, hashlib.sha256(secret.encode()).digest(), _limits(limits, where))
    if not keys:
        raise UsageError(f"expected at least one API key in {path}, found none; put one secret per line")
    return tuple(keys.values())


def _limits(words: list[str], where: str) -> KeyLimits:
    limits = KeyLimits()
    for word in words:
        found = _LIMIT.fullmatch(word)
        if found is None:
            raise UsageError(
                f"expected requests=N/min, tokens=N/day or at-once=N behind the secret in {where}, found {word[:40]!r}"
            )
        kind, count = (part for part in found.groups() if part is not None)
        match kind:
            case "requests":
                limits = replace(limits, requests_per_minute=int(count))
            case "tokens":
                limits = replace(limits, tokens_per_day=int(count))
            case _:
                limits = replace(limits, at_once=int(count))
    return limits


def find_user(header: str | None, keys: tuple[ApiKey, ...]) -> str | None:
    """Name of the key in an Authorization header; None when it is none of ours. Time does not depend on the key."""
    scheme, _, secret = (header or "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    digest = hashlib.sha256(secret.strip().encode("utf-8", "surrogateescape")).digest()
    found = None
    for key in keys:
        if hmac.compare_digest(digest, key.digest):
            found = key.name
    return found
