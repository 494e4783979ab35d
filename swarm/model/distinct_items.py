"""How many items of an array may begin with given bytes: what an array of different items may still have.

Items are single values in the one spelling that answers have: strings, whole numbers, values of an `enum`.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from swarm.model.schema_parts import NOTES, TYPES, listed, named, type_of

PLENTY = 1 << 40
"""More than any answer has."""
_EXACT = 2**53
_DIGITS = 20
"""Longer numbers are wider than any bound."""
_ESCAPES, _LAST_BYTE = 7, 64
"""Ways in which a character may end after a backslash, and within UTF-8 (at least)."""
_FEW = 1000
_OF = {
    "string": {"minLength", "maxLength"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set[str](),
    "null": set[str](),
}
"""Kinds of items, and the keywords that may stand beside them."""


class Items(Protocol):
    """What the items of one array may be."""

    @property
    def few(self) -> bool:
        """Whether an answer may come to have most of them."""

    @property
    def endless(self) -> bool:
        """Whether PLENTY begin with whatever one begins with, but for 0."""

    def left(self, begun: bytes) -> int:
        """How many begin with these bytes, at most PLENTY; never more than there are."""


@dataclass(frozen=True)
class StringItems:
    """StringItems of at most `most` characters; None: of any length."""

    most: int | None

    @property
    def few(self) -> bool:
        return self.most is not None and self.most < 16

    @property
    def endless(self) -> bool:
        return self.most is None

    def left(self, begun: bytes) -> int:
        if begun[:1] not in (b"", b'"'):
            return 0
        if self.most is None or not begun:
            return 1 if self.most == 0 else PLENTY
        whole, ways = _characters(begun[1:])
        if whole + (ways > 0) >= self.most:
            return ways or 1
        return PLENTY


def _characters(inner: bytes) -> tuple[int, int]:
    """Of the beginning of a string's spelling: whole characters, and ways in which one that has begun may end (0: none
    has)."""
    count, place = 0, 0
    while place < len(inner):
        byte = inner[place]
        size = 2 if byte == 0x5C else 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        if place + size > len(inner):
            return count, _ESCAPES if byte == 0x5C else _LAST_BYTE
        count, place = count + 1, place + size
    return count, 0


@dataclass(frozen=True)
class WholeItems:
    """WholeItems numbers within bounds, both included; None: without one."""

    low: int | None
    high: int | None

    @property
    def few(self) -> bool:
        return self.low is not None and self.high is not None and self.high - self.low < _FEW

    @property
    def endless(self) -> bool:
        return self.high is None and (self.low is None or self.low >= 0)

    def left(self, begun: bytes) -> int:
        if not begun:
            return _between(self.low, self.high)
        if begun[:1] == b"-":
            return WholeItems(_negative(self.high), _negative(self.low))._from(begun[1:], 1)
        return self._from(begun, 0)

    def _from(self, digits: bytes, least: int) -> int:
        """Of those from `least` up, in digits."""
        low = max(least, least if self.low is None else self.low)
        if not digits:
            return _between(low, self.high)
        if not digits.isdigit() or (digits[:1] == b"0" and digits != b"0"):
            return 0
        if digits == b"0":  # alone or, behind a sign, the same as that
            inside = (self.low is None or self.low <= 0) and (self.high is None or self.high >= 0)
            return int(inside)
        if self.high is None:
            return PLENTY
        if len(digits) > _DIGITS:
            return 0
        first, last, count = int(digits), int(digits), 0
        while first <= self.high:
            count += max(0, min(last, self.high) - max(first, low) + 1)
            first, last = 10 * first, 10 * last + 9
        return min(count, PLENTY)


def _between(low: int | None, high: int | None) -> int:
    return PLENTY if low is None or high is None else min(PLENTY, max(0, high - low + 1))


def _negative(bound: int | None) -> int | None:
    return None if bound is None else -bound


@dataclass(frozen=True)
class KnownItems:
    """These spellings, each once, in order."""

    texts: tuple[bytes, ...]
    few, endless = True, False

    def left(self, begun: bytes) -> int:
        return bisect_left(self.texts, begun + b"\xff" * 4) - bisect_left(self.texts, begun)


@dataclass(frozen=True)
class ItemsOfKinds:
    """Items of several kinds, of which none has a beginning in common with another."""

    kinds: tuple[Items, ...]

    @property
    def few(self) -> bool:
        return any(kind.few for kind in self.kinds)

    @property
    def endless(self) -> bool:
        return all(kind.endless for kind in self.kinds)

    def left(self, begun: bytes) -> int:
        return min(PLENTY, sum(kind.left(begun) for kind in self.kinds))


def items_of(schema: Any, root: Mapping[str, Any]) -> Items | None:
    """What fits a schema of items; None where that cannot be counted."""
    found = _kinds(schema, root, 16)
    if not found or len({kind for kind, _ in found}) < len(found):
        return None
    return found[0][1] if len(found) == 1 else ItemsOfKinds(tuple(items for _, items in found))


def _kinds(schema: Any, root: Mapping[str, Any], depth: int) -> list[tuple[str, Items]]:
    """(JSON type, items of it) for each; none: unknown."""
    if not isinstance(schema, Mapping) or depth < 0:
        return []
    said = {key: value for key, value in schema.items() if key not in NOTES}
    if set(said) == {"$ref"}:
        return _kinds(named(root, said["$ref"]), root, depth - 1)
    if set(said) == {"anyOf"}:
        parts = [_kinds(part, root, depth - 1) for part in listed(said, "anyOf")]
        return [each for part in parts for each in part] if all(parts) else []
    if "enum" in said or "const" in said:
        return _values(said)
    kinds = said.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list) or not all(isinstance(kind, str) and kind in _OF for kind in kinds):
        return []
    if not set(said) <= {"type"}.union(*(_OF[kind] for kind in kinds)):
        return []
    return [(kind, items) for kind in kinds if (items := _kind(kind, said)) is not None]


def _kind(kind: str, said: Mapping[str, Any]) -> Items | None:
    if kind == "string":
        most = said.get("maxLength")
        return StringItems(most) if most is None or (isinstance(most, int) and most >= 0) else None
    if kind == "integer":
        return _whole(said)
    return KnownItems((b"false", b"true") if kind == "boolean" else (b"null",))


def _whole(said: Mapping[str, Any]) -> WholeItems | None:
    lows, highs = [], []
    for key in _OF["integer"]:
        if (bound := said.get(key)) is None:
            continue
        if isinstance(bound, bool) or not isinstance(bound, int | float) or abs(bound) > _EXACT:
            return None
        beyond = int(key.startswith("exclusive"))
        if key.lower().endswith("minimum"):
            lows.append(math.floor(bound) + 1 if beyond else math.ceil(bound))
        else:
            highs.append(math.ceil(bound) - 1 if beyond else math.floor(bound))
    return WholeItems(max(lows, default=None), min(highs, default=None))


def _values(said: Mapping[str, Any]) -> list[tuple[str, Items]]:
    if set(said) - {"type", "enum", "const"} or ("enum" in said and "const" in said):
        return []
    given: Sequence[Any] = listed(said, "enum") if "enum" in said else [said["const"]]
    kinds = said.get("type", [*TYPES, "integer"])
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if not all(value is None or isinstance(value, bool | str | int) for value in given):
        return []
    if any(isinstance(value, int) and abs(value) > _EXACT for value in given):
        return []
    found: dict[str, set[bytes]] = {}
    for value in given:
        kind = type_of(value)
        if kind in kinds or (kind == "number" and "integer" in kinds):
            text = json.dumps(value, ensure_ascii=False).encode()
            found.setdefault("integer" if kind == "number" else kind, set()).add(text)
    return [(kind, KnownItems(tuple(sorted(texts)))) for kind, texts in found.items()]
