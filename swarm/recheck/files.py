"""Receipts on disk, and the requester's values behind their salted digests, which lie beside them."""

from __future__ import annotations

from pathlib import Path

from receipts.format.document import secrets_untrusted
from receipts.format.errors import ReceiptError
from receipts.format.salt import Secret
from swarm.base.errors import UsageError

SECRETS = ".secrets.json"


def read_file(path: Path) -> bytes:
    """The bytes of a receipt. Raises UsageError when there are none."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the receipt {path}: {error.strerror}") from error


def read_secrets(path: Path) -> tuple[Secret, ...]:
    """What a secrets file discloses. Raises UsageError."""
    try:
        return secrets_untrusted(path.read_bytes())
    except (OSError, ReceiptError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot use the secrets file {path}: {reason}") from error


def secrets_beside(receipt: Path, data: bytes) -> tuple[Secret, ...]:
    """Of the file beside a receipt what belongs to it; none where there is no such file. Raises UsageError.

    Lying beside a receipt is no reason to refuse it: what is of another run is left aside.
    """
    path = receipt.with_suffix(SECRETS)
    if not path.is_file():
        return ()
    return tuple(secret for secret in read_secrets(path) if secret.digest.encode() in data)
