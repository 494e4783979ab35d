"""Random JSON Schemas over all keywords that answers can be held to, and a check of documents that knows formats."""

from __future__ import annotations

import ipaddress
import re
import uuid
from collections.abc import Callable
from datetime import date, datetime, time
from random import Random
from typing import Any

import jsonschema

NAMES = ["a", "name", "name of it", "größe", 'say "x"', "path\\to", "type", "pattern", "$ref", "x-1", ""]
PATTERNS = ["^[a-c]{1,3}$", "^x", "[0-9]$", "a.c", "^(yes|no)$", "^\\d{3}-\\d{2}$", "^[^\\s]+$", "(ab)+|[x-z]"]
FORMATS = ["date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "password"]
VALUES = [None, True, False, 0, -3, 2.5, "", "yes", 'a "b"\n', "größe 😀", [], [1, "x"], {}, {"b": 1, "a": [None]}]


class SchemaMaker:
    """Schemas of bounded depth. Every one has documents that end, but for intersections that may turn out empty."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def made(self) -> dict[str, Any]:
        """A whole schema, with definitions that it refers to, one of them to itself."""
        tree = {
            "type": "object",
            "properties": {"value": self.schema(1), "below": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
            "required": ["value"],
            "additionalProperties": False,
        }
        made = self.schema(3)
        return {**made, "$defs": {"tree": tree, "leaf": self.schema(1), "one": {"$anchor": "one", "enum": VALUES[3:6]}}}

    def schema(self, depth: int) -> dict[str, Any]:
        kinds: list[Callable[[int], dict[str, Any]]] = [self._text, self._number, self._value, self._loose]
        if depth > 0:
            kinds += [self._list, self._object, self._map, self._either, self._one, self._all, self._list, self._object]
            kinds += [self._condition, self._different]
        if depth in (1, 2):
            kinds.append(self._reference)
        return self._random.choice(kinds)(depth)

    def _text(self, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {"type": self._random.choice(["string", "string", ["string", "null"]])}
        match self._random.randrange(4):
            case 0:
                made["pattern"] = self._random.choice(PATTERNS)
            case 1:
                made["format"] = self._random.choice(FORMATS)
            case 2:
                made["minLength"] = self._random.choice([0, 1, 3, 2.0])
                made["maxLength"] = self._random.choice([3, 8, 20])
        return made

    def _number(self, depth: int) -> dict[str, Any]:
        kind = self._random.choice(["integer", "number", ["integer", "null"], ["number", "string"]])
        made: dict[str, Any] = {"type": kind}
        if self._random.random() < 0.5:
            made[self._random.choice(["minimum", "exclusiveMinimum"])] = self._random.choice([-1000, -2.5, 0, 0.001, 7])
        if self._random.random() < 0.5:
            made[self._random.choice(["maximum", "exclusiveMaximum"])] = self._random.choice([8.25, 100, 99999, 2**53])
        if self._random.random() < 0.2:
            made["multipleOf"] = self._random.choice([0.25, 0.5, 1, 3, 10])
        return made

    def _value(self, depth: int) -> dict[str, Any]:
        if self._random.random() < 0.3:
            return {"const": self._random.choice(VALUES)}
        return {"enum": self._random.sample(VALUES, self._random.randint(1, 5))}

    def _loose(self, depth: int) -> dict[str, Any]:
        """Keywords without a type: they hold for their own type alone."""
        choices = {
            "minLength": 2,
            "pattern": "^[a-d]*$",
            "maximum": 50,
            "maxItems": 2,
            "items": {"type": "integer"},
            "required": ["a"],
            "properties": {"a": {"type": "boolean"}, "format": {"type": "null"}},
            "format": "ipv4",
            "uniqueItems": False,
        }
        return {key: choices[key] for key in self._random.sample(list(choices), 2)}

    def _list(self, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "array", "items": self.schema(depth - 1)}
        if self._random.random() < 0.3:
            made["prefixItems"] = [self.schema(depth - 1) for _ in range(self._random.randint(1, 2))]
        if self._random.random() < 0.2:
            made["items"] = False
        made["maxItems"] = self._random.choice([2, 3, 4])
        made["minItems"] = self._random.choice([0, 0, 1]) if made["items"] is False else self._random.choice([0, 1, 2])
        return made

    def _object(self, depth: int) -> dict[str, Any]:
        names = self._random.sample(NAMES, self._random.randint(0, 4))
        made: dict[str, Any] = {"type": "object", "properties": {name: self.schema(depth - 1) for name in names}}
        made["required"] = [name for name in names if self._random.random() < 0.6]
        if self._random.random() < 0.15:
            made["required"] = [*made["required"], "more"]
        if self._random.random() < 0.2 and len(names) > 1:
            made["dependentRequired"] = {names[0]: [names[1]]}
        match self._random.randrange(4):
            case 0:
                made["additionalProperties"] = self.schema(0)
            case 1:
                made["patternProperties"] = {"^p[0-9]+$": self.schema(depth - 1)}
                made["additionalProperties"] = False
            case 2 | 3:
                made["additionalProperties"] = False
        return made

    def _map(self, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "object", "additionalProperties": self.schema(depth - 1)}
        made["maxProperties"] = self._random.choice([1, 2, 3])
        if self._random.random() < 0.5:
            made["minProperties"] = 1
        if self._random.random() < 0.4:
            made = {"type": "object", "additionalProperties": self.schema(depth - 1)}
            made["propertyNames"] = self._random.choice([{"enum": ["x", "y"]}, {"pattern": "^[a-z]{1,3}$"}])
        return made

    def _either(self, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {"anyOf": [self.schema(depth - 1) for _ in range(self._random.randint(1, 3))]}
        if self._random.random() < 0.3:
            made["type"] = self._random.sample(["string", "integer", "object", "array", "null"], 3)
        return made

    def _one(self, depth: int) -> dict[str, Any]:
        """Parts that a value tells apart, or that are of different types."""
        if self._random.random() < 0.5:
            return {
                "oneOf": [self._text(0) | {"type": "string"}, {"type": "integer"}, {"type": "array", "maxItems": 1}]
            }
        parts = [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "is": self.schema(depth - 1)},
                "required": ["kind"],
            }
            for kind in ("cat", "dog")
        ]
        return {"oneOf": parts}

    def _all(self, depth: int) -> dict[str, Any]:
        first = {"type": "object", "properties": {"a": self.schema(depth - 1), "b": {"type": "integer"}}}
        second: dict[str, Any] = {"properties": {"b": {"minimum": 3}, "c": {"$ref": "#/$defs/leaf"}}, "required": ["b"]}
        return (
            {"allOf": [first, second], "title": "both", "maxProperties": 9} if depth > 5 else {"allOf": [first, second]}
        )

    def _condition(self, depth: int) -> dict[str, Any]:
        """Members that depend on another, and what must not be."""
        kind = self._random.choice([{"const": "cat"}, {"enum": ["cat", 1, None]}, {"type": "null"}, {"minLength": 4}])
        told = {"properties": {"kind": kind}, **({"required": ["kind"]} if self._random.random() < 0.5 else {})}
        made: dict[str, Any] = {
            "type": "object",
            "properties": {
                "kind": {"enum": ["cat", "fish", 1, 2, None]}, "a": self.schema(depth - 1), "b": {"type": "integer"}
            },
            "additionalProperties": False,
        }  # fmt: skip
        match self._random.randrange(5):
            case 0:
                more: dict[str, Any] = {"if": told, "then": {"required": ["a"]}, "else": {"required": ["b"]}}
            case 1:
                more = {"if": {"not": told}, "then": {"properties": {"b": {"not": {"minimum": 3}}}}}
            case 2:
                more = {"not": told, "required": ["kind"]}
            case 3:
                more = {"dependentSchemas": {"a": {"required": ["b"], "properties": {"b": {"maximum": 5}}}}}
            case _:
                first = {key: made.pop(key) for key in ("properties", "additionalProperties")}
                more = {"allOf": [{"properties": first["properties"]}], "unevaluatedProperties": False}
        return {**made, **more}

    def _different(self, depth: int) -> dict[str, Any]:
        if self._random.random() < 0.3:
            items = self._random.choice(
                [{"type": "string", "maxLength": 2}, {"type": "integer"}, {"enum": list("abcdef")}]
            )
            return {"type": "array", "items": items, "uniqueItems": True, "minItems": self._random.randint(0, 4)}
        if self._random.random() < 0.5:
            values = self._random.sample([value for value in VALUES if not isinstance(value, list | dict)], 3)
            return {"type": "array", "items": {"enum": values}, "uniqueItems": True}
        wanted = self._random.choice([{"const": "yes"}, {"type": "integer"}, {"enum": [None, "x"]}])
        made = {"type": "array", "items": {"enum": VALUES[:8]}, "contains": wanted, "maxItems": 3}
        return {**made, "maxContains": 1} if self._random.random() < 0.5 else made

    def _reference(self, depth: int) -> dict[str, Any]:
        name = self._random.choice(["#/$defs/tree", "#/$defs/leaf", "#one"])
        return {"$ref": name, "description": "what is meant"}


def fits(document: Any, schema: Any) -> bool:
    """Whether a document fits, formats too."""
    return bool(jsonschema.Draft202012Validator(schema, format_checker=FORMAT_CHECKER).is_valid(document))


FORMAT_CHECKER = jsonschema.FormatChecker(formats=())


def _checks(form: str) -> Callable[[Callable[[str], object]], Callable[[str], object]]:
    def declare(read: Callable[[str], object]) -> Callable[[str], object]:
        def check(text: object) -> bool:
            if isinstance(text, str):
                read(text)
            return True

        FORMAT_CHECKER.checks(form, raises=ValueError)(check)
        return read

    return declare


@_checks("date")
def _date(text: str) -> None:
    # RFC 3339 has a year 0, of 366 days, which Python has not.
    date.fromisoformat(re.sub("^0000", "0400", text))
    _want(r"\d{4}-\d\d-\d\d", text)


@_checks("time")
def _time(text: str) -> None:
    if re.search(":60", text):
        _want(r"23:59:60(\.\d+)?(Z|z|[+-]00:00)", text)
    _want(r"\d\d:\d\d:\d\d(\.\d+)?(Z|z|[+-]\d\d:\d\d)", text)
    time.fromisoformat(re.sub(r"\.\d+", "", text).replace(":60", ":59").upper())


@_checks("date-time")
def _date_time(text: str) -> None:
    _date(text[:10])
    _want("[tT]", text[10])
    _time(text[11:])
    datetime.fromisoformat("2000-01-01T" + re.sub(r"\.\d+", "", text[11:]).replace(":60", ":59").upper())


@_checks("ipv4")
def _ipv4(text: str) -> None:
    ipaddress.IPv4Address(text)


@_checks("ipv6")
def _ipv6(text: str) -> None:
    ipaddress.IPv6Address(text)


@_checks("uuid")
def _uuid(text: str) -> None:
    _want(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text)
    uuid.UUID(text)


@_checks("duration")
def _duration(text: str) -> None:
    whole = r"P(\d+W|(?=.)(\d+Y)?(\d+M)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+S)?)?)"
    _want(whole, text)


@_checks("email")
def _email(text: str) -> None:
    _want(r"[^@\s]+@[^@\s]+", text)


@_checks("hostname")
def _hostname(text: str) -> None:
    _want(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*", text)


@_checks("uri")
def _uri(text: str) -> None:
    _want(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]*", text)


def _want(pattern: str, text: str) -> None:
    if re.fullmatch(pattern, text, re.ASCII) is None:
        raise ValueError(f"expected {pattern}, found {text!r}")
