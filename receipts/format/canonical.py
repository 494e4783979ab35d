"""JSON in one exact form (RFC 8785, integers only), and a parser that refuses everything else.

Floats never occur in a receipt (times are microseconds, ratios parts per million), so RFC 8785's number rule
reduces to plain integers. Integers stay below 2^53, so every JSON library reads them alike.
"""

from __future__ import annotations

import json
import re
from typing import Any

from receipts.format.errors import ReceiptError, Refusal

MAX_INTEGER = 2**53 - 1
MAX_BYTES = 8 << 20
MAX_DEPTH = 16
MAX_ITEMS = 400_000

# An unclosed string is consumed to its end, so that the scan is linear whatever the bytes.
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.S)
_BEGINS = frozenset('{["-0123456789tfnNI')
"""How JSON begins; N and I are for numbers that are refused as such."""
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def emit(value: Any) -> bytes:
    """Canonical JSON of dicts, lists, tuples, strings, integers, booleans and None, as UTF-8.

    Raises ReceiptError(NUMBER) for a float or an integer beyond 2^53 - 1, and ReceiptError(SHAPE) for anything else
    that canonical JSON cannot say (other types, lone surrogates, keys that are not strings).
    """
    if not _plain(value):
        value = _ordered(value)
        return _dump(value, sort_keys=False)
    return _dump(value, sort_keys=True)


def _dump(value: Any, sort_keys: bool) -> bytes:
    text = json.dumps(value, sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ReceiptError(Refusal.SHAPE, "a string holds half a surrogate pair") from exc


def _plain(value: Any) -> bool:
    """Whether code point order sorts the keys as RFC 8785 wants; refuses what cannot be emitted."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return True
    if kind is int:
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise ReceiptError(Refusal.NUMBER, f"integer {value} is beyond 2^53 - 1")
        return True
    if kind is list or kind is tuple:
        return all([_plain(item) for item in value])
    if kind is dict:
        plain = True
        for key, item in value.items():
            if type(key) is not str:
                raise ReceiptError(Refusal.SHAPE, f"key {key!r} is not a string")
            plain = _plain(item) and key.isascii() and plain
        return plain
    refusal = Refusal.NUMBER if kind is float else Refusal.SHAPE
    raise ReceiptError(refusal, f"{kind.__name__} has no place in canonical JSON")


def _ordered(value: Any) -> Any:
    """The same value with keys in the order of their UTF-16 code units (RFC 8785, section 3.2.3)."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
        return {key: _ordered(value[key]) for key in keys}
    if isinstance(value, list | tuple):
        return [_ordered(item) for item in value]
    return value


def parse_untrusted(data: bytes, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """JSON from a stranger: bounded in size, depth and count before it is parsed; integers only; no key twice.

    Raises ReceiptError (SIZE, NESTING, COUNT, DUPLICATE_KEY, NUMBER, UNREADABLE) and nothing else.
    """
    if len(data) > max_bytes:
        raise ReceiptError(Refusal.SIZE, f"{len(data)} bytes; at most {max_bytes} are read")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ReceiptError(Refusal.UNREADABLE, f"expected JSON in UTF-8: {exc}") from exc
    if text.lstrip(" \t\r\n")[:1] not in _BEGINS:  # else brackets of some other text would seem to be nested
        raise ReceiptError(Refusal.UNREADABLE, f"expected JSON in UTF-8, found a text that begins with {text[:20]!r}")
    _bound_untrusted(data, max_depth)
    try:
        return json.loads(
            text,
            object_pairs_hook=_no_duplicates,
            parse_float=_no_float,
            parse_constant=_no_float,
            parse_int=_small_integer,
        )
    except ValueError as exc:
        raise ReceiptError(Refusal.UNREADABLE, f"expected JSON in UTF-8: {exc}") from exc


def _bound_untrusted(data: bytes, max_depth: int) -> None:
    if data.count(b",") > MAX_ITEMS:
        raise ReceiptError(Refusal.COUNT, f"more than {MAX_ITEMS} entries")
    brackets = _STRINGS.sub(b"", data).translate(None, _NOT_BRACKETS)
    for _ in range(max_depth):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    # What is left is deep, or unbalanced and the parser's to name; it may recurse no deeper than this leaves it.
    if len(brackets) > max_depth:
        raise ReceiptError(Refusal.NESTING, f"nested deeper than {max_depth} levels")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ReceiptError(Refusal.DUPLICATE_KEY, f"key {twice[:40]!r} appears twice in one object")
    return found


def _no_float(text: str) -> Any:
    raise ReceiptError(Refusal.NUMBER, f"found {text[:40]}; only integers are allowed")


def _small_integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MAX_INTEGER:
        raise ReceiptError(Refusal.NUMBER, f"integer {text[:40]} is beyond 2^53 - 1")
    if text == "-0":
        raise ReceiptError(Refusal.NUMBER, "-0 is not an integer")
    return int(text)
