"""What fits exactly where a JSON Schema does not, as a schema: `not`, and the other half of `if`, in words that can be
held to.

A schema is all of its keywords at once, so its negation is any of theirs. What is found may be stricter than the
negation, never wider, so it must not be negated again. A keyword without a negation that the engine
could hold (`pattern`, `items`, `multipleOf` and the like) makes the whole unknown: None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from swarm.model.schema_parts import NOTES, STANDARD_FORMATS, TYPES, named, type_of

MOST = 500
"""Schemas looked at for one negation: references may come by many ways to the same one."""
_STRINGS, _LETTERS = 64, 2000
"""Of one `enum` whose complement is written as a pattern."""


class Negation:
    """Negations within one document, whose references are looked up at `root`."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._steps = MOST

    def of(self, schema: Any) -> Any:
        """The negation of a schema; None where there is none that can be held to."""
        self._steps -= 1
        if isinstance(schema, bool):
            return not schema
        if not isinstance(schema, Mapping) or self._steps < 0:
            return None
        parts: list[Any] = []
        for key, value in schema.items():
            if _says_nothing(key, value):
                continue
            rule = _RULES.get(key)
            part = rule(self, value) if rule is not None and not ("items" in key and "prefixItems" in schema) else None
            if part is None:
                return None
            parts.append(part)
        return either(parts)

    def _all(self, schemas: Any) -> list[Any] | None:
        if not isinstance(schemas, list):
            return None
        found = [self.of(schema) for schema in schemas]
        return None if any(part is None for part in found) else found

    def _any_of(self, value: Any) -> Any:
        found = self._all(value)
        return None if found is None else every(found)

    def _all_of(self, value: Any) -> Any:
        found = self._all(value)
        return None if found is None else either(found)

    def _ref(self, value: Any) -> Any:
        found = named(self._root, value)
        return None if found is None else self.of(found)

    def _properties(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return None
        parts: list[Any] = []
        for name, schema in value.items():
            part = self.of(schema)
            if part is None:
                return None
            if part is not False:
                parts.append({"type": "object", "properties": {name: part}, "required": [name]})
        return either(parts)

    def _same(self, value: Any) -> Any:
        return value if isinstance(value, bool | Mapping) else None


def either(parts: Sequence[Any]) -> Any:
    """Any of these schemas."""
    left = [part for part in parts if part is not False]
    if any(part is True for part in left):
        return True
    return False if not left else left[0] if len(left) == 1 else {"anyOf": left}


def every(parts: Sequence[Any]) -> Any:
    """All of these schemas."""
    left = [part for part in parts if part is not True and part != {}]
    if any(part is False for part in left):
        return False
    return True if not left else left[0] if len(left) == 1 else {"allOf": left}


def _says_nothing(key: str, value: Any) -> bool:
    if key == "format":
        return isinstance(value, str) and value not in STANDARD_FORMATS
    return key in NOTES or key in ("$defs", "definitions") or (key == "additionalProperties" and value in (True, {}))


def _type(_: Negation, value: Any) -> Any:
    given = {value} if isinstance(value, str) else set(value) if isinstance(value, list) else set()
    if not given or not given <= {*TYPES, "integer"}:
        return None
    # Numbers that are not whole have no name: beside integers none are left, which is stricter.
    left = [kind for kind in TYPES if kind not in given and not (kind == "number" and "integer" in given)]
    return {"type": left} if left else False


def _enum(_: Negation, value: Any) -> Any:
    if not isinstance(value, list):
        return None
    kinds = {kind: [item for item in value if type_of(item) == kind] for kind in TYPES}
    if kinds["object"] or kinds["array"]:
        return None
    parts: list[Any] = [{"type": [kind for kind in TYPES if not kinds[kind]]}]
    if kinds["boolean"]:
        parts += [{"const": way} for way in (False, True) if way not in kinds["boolean"]]
    if kinds["string"]:
        pattern = other_than(kinds["string"])
        if pattern is None:
            return None
        parts.append({"type": "string", "pattern": pattern})
    if kinds["number"]:
        marks = sorted(set(kinds["number"]))
        above: list[dict[str, Any]] = [{}, *({"exclusiveMinimum": mark} for mark in marks)]
        below: list[dict[str, Any]] = [*({"exclusiveMaximum": mark} for mark in marks), {}]
        parts += [{"type": "number", **low, **high} for low, high in zip(above, below, strict=True)]
    return either(parts)


def _const(negation: Negation, value: Any) -> Any:
    return _enum(negation, [value])


def _bound(kind: str, keyword: str, step: int | None = None) -> Callable[[Negation, Any], Any]:
    """A bound turned round: for numbers to its exclusive or inclusive other, for counts by one (`step`)."""

    def rule(_: Negation, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if step is None:
            return {"type": kind, keyword: value}
        if not float(value).is_integer():
            return None
        count = int(value) + step
        return {"type": kind, keyword: count} if count >= 0 else False

    return rule


def _required(_: Negation, value: Any) -> Any:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return None
    return either([{"type": "object", "properties": {name: False}} for name in value])


def other_than(strings: Sequence[str]) -> str | None:
    """A pattern of all strings but these; None for too many."""
    if len(strings) > _STRINGS or sum(map(len, strings)) > _LETTERS or max(map(len, strings)) > 100:
        return None

    def behind(ends: set[str]) -> str:
        firsts = sorted({end[0] for end in ends if end})
        ways = [f"[^{''.join(map(_letter, firsts))}]{_ANY}*" if firsts else f"{_ANY}+"]
        ways += [_letter(first) + behind({end[1:] for end in ends if end[:1] == first}) for first in firsts]
        return f"(?:{'|'.join(ways)}){'' if '' in ends else '?'}"

    return f"^{behind(set(strings))}$"


_ANY = r"[\s\S]"


def _letter(letter: str) -> str:
    return letter if re.fullmatch("[A-Za-z0-9]", letter) else f"\\x{{{ord(letter):x}}}"


_RULES: Mapping[str, Callable[[Negation, Any], Any]] = {
    "type": _type,
    "const": _const,
    "enum": _enum,
    "minimum": _bound("number", "exclusiveMaximum"),
    "maximum": _bound("number", "exclusiveMinimum"),
    "exclusiveMinimum": _bound("number", "maximum"),
    "exclusiveMaximum": _bound("number", "minimum"),
    "minLength": _bound("string", "maxLength", -1),
    "maxLength": _bound("string", "minLength", 1),
    "minItems": _bound("array", "maxItems", -1),
    "maxItems": _bound("array", "minItems", 1),
    "minProperties": _bound("object", "maxProperties", -1),
    "maxProperties": _bound("object", "minProperties", 1),
    "required": _required,
    "properties": Negation._properties,
    "anyOf": Negation._any_of,
    "allOf": Negation._all_of,
    "not": Negation._same,
    "$ref": Negation._ref,
}
