"""What a ring's messages carry for receipts, read with bounds: lists of envelopes, drawn tokens, disclosed values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from receipts.format.errors import ReceiptError, Refusal
from receipts.format.salt import Secret
from receipts.record.tail import Drawn

Header = dict[str, Any]
"""Bytes, integers, strings and lists, as a message of the ring carries them."""

MAX_ENVELOPES = 2048
MAX_EPOCHS = 256
MAX_DRAWN = 1 << 20
MAX_SHOWN = 512
MAX_SHOWN_CHARS = 200


def envelopes_untrusted(header: Mapping[str, Any], name: str) -> list[bytes]:
    """The list of envelopes under `name`, not yet read. Raises ReceiptError."""
    value = header.get(name, [])
    if not isinstance(value, list | tuple) or len(value) > MAX_ENVELOPES:
        raise ReceiptError(Refusal.SHAPE, f"{name}: not a list of envelopes")
    if not all(isinstance(item, bytes) for item in value):
        raise ReceiptError(Refusal.SHAPE, f"{name}: an envelope is not bytes")
    return list(value)


def secret_fields(secret: Secret) -> Header:
    """A value behind a salted digest; `shown_untrusted` reads it."""
    return {"name": secret.name, "salt": secret.salt, "value": secret.value}


def shown_untrusted(value: Any) -> list[Secret]:
    """Values that stages disclose. Raises ReceiptError."""
    if not isinstance(value, list | tuple) or len(value) > MAX_SHOWN:
        raise ReceiptError(Refusal.SHAPE, "collect: disclosed is not a short list")
    result = []
    for item in value:
        fields = item if isinstance(item, Mapping) else {}
        name, salt, text = fields.get("name"), fields.get("salt"), fields.get("value")
        if not isinstance(name, str) or not isinstance(salt, bytes) or not isinstance(text, str):
            raise ReceiptError(Refusal.SHAPE, "collect: a disclosed value is malformed")
        if len(salt) != 32 or len(text) > MAX_SHOWN_CHARS:
            raise ReceiptError(Refusal.SHAPE, "collect: a disclosed value is malformed")
        result.append(Secret(name, salt, text))
    return result


def drawn_untrusted(value: Any) -> list[Drawn]:
    """Tokens that tails drew, as `Drawn.as_json` gives them. Raises ReceiptError."""
    if not isinstance(value, list | tuple) or len(value) > MAX_EPOCHS:
        raise ReceiptError(Refusal.SHAPE, "collect: drawn is not a short list")
    result = []
    for item in value:
        fields = item if isinstance(item, Mapping) else {}
        first, tokens, margins = fields.get("first"), fields.get("tokens"), fields.get("margins_ppm")
        if type(first) is not int or not isinstance(tokens, list | tuple) or not isinstance(margins, list | tuple):
            raise ReceiptError(Refusal.SHAPE, "collect: drawn tokens are malformed")
        if len(tokens) != len(margins) or len(tokens) > MAX_DRAWN:
            raise ReceiptError(Refusal.SHAPE, "collect: tokens and margins differ in number")
        if not all(type(number) is int and 0 <= number < 2**53 for number in (first, *tokens, *margins)):
            raise ReceiptError(Refusal.SHAPE, "collect: drawn tokens are malformed")
        result.append(Drawn(first, tuple(tokens), tuple(margins)))
    return result


def starts_untrusted(header: Mapping[str, Any]) -> dict[int, int]:
    """Where epochs began to draw, by number. Raises ReceiptError."""
    starts = header.get("starts", [])
    if not isinstance(starts, list | tuple) or len(starts) > MAX_EPOCHS:
        raise ReceiptError(Refusal.SHAPE, "collect: `starts` is not a list of positions")
    if not all(type(start) is int and 0 <= start < 2**32 for start in starts):
        raise ReceiptError(Refusal.SHAPE, "collect: an epoch starts at no position")
    return dict(enumerate(starts))
