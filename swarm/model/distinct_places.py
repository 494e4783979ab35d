"""Where in an answer the arrays are whose items must be different ones (`uniqueItems`): read from a JSON Schema.

A place is a set of schemas that may say something about one value. Each place with such an array must have one schema
of arrays alone, whose items can be counted; anything else is refused by name, since whoever follows an answer could
come to where no document goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from swarm.base.errors import UsageError
from swarm.model.distinct_items import Items, items_of
from swarm.model.schema_parts import NOTES, listed, named
from swarm.model.schemas import rebuilt

_MOST = 1000
_STEPS = 5_000
_ARRAYS = frozenset("items prefixItems minItems maxItems uniqueItems".split())
_OBJECTS = frozenset("properties patternProperties additionalProperties required minProperties maxProperties".split())
_WAYS = ("allOf", "anyOf", "oneOf")
_BESIDE = NOTES | {"type", "$defs", "definitions", "$schema", "$id", "x-guidance"} | (_ARRAYS - {"prefixItems"})
"""What may stand in the schema of such an array."""
_UNREAD = frozenset("$anchor $dynamicAnchor $dynamicRef if not contains dependentSchemas".split())
_GUIDANCE = {"json_allowed_escapes": 'nrbtf\\"'}


@dataclass(eq=False)
class SetPlace:
    """`unique`: what the items of an array here may be, where they must be different ones. `names`: places of an
    object's members, `other` of those not in it; `first` and `rest`: of an array's items. None: nothing to look at."""

    unique: Items | None = None
    names: dict[str, SetPlace | None] = field(default_factory=dict)
    other: SetPlace | None = None
    first: list[SetPlace | None] = field(default_factory=list)
    rest: SetPlace | None = None

    def member(self, name: str) -> SetPlace | None:
        """The place of a member's value."""
        return self.names.get(name, self.other)

    def item(self, index: int) -> SetPlace | None:
        """The place of an item."""
        return self.first[index] if index < len(self.first) else self.rest


def apart(text: str) -> tuple[str, SetPlace | None]:
    """A JSON Schema's text as the engine is to read it, and where in answers items must be different ones; None:
    nowhere. Raises UsageError where that cannot be held to, ValueError for what is no JSON."""
    if '"uniqueItems"' not in text:
        return text, None
    schema = json.loads(text)
    if not isinstance(schema, Mapping) or not _says(schema):
        return text, None
    place = places(schema)
    return json.dumps(_without(schema), ensure_ascii=False, separators=(",", ":")), place


def _says(schema: Mapping[str, Any]) -> bool:
    """Whether a schema in it has the keyword."""
    found = False

    def look(below: Any) -> Any:
        nonlocal found
        if isinstance(below, Mapping):
            found = found or "uniqueItems" in below
            rebuilt(below, look)
        return below

    look(schema)
    return found


def _without(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    return rebuilt({key: value for key, value in schema.items() if key != "uniqueItems"}, _without)


def places(schema: Mapping[str, Any]) -> SetPlace | None:
    """The place of a whole answer. Raises UsageError naming `uniqueItems` where it cannot be held to."""
    return _Reading(schema).root()


class _Reading:
    """One schema being read."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema, self._steps = schema, 0
        self._made: dict[frozenset[int], SetPlace] = {}
        self._open: list[tuple[SetPlace, list[Mapping[str, Any]]]] = []
        if schema.get("x-guidance", _GUIDANCE) != _GUIDANCE:
            raise _refused("strings in one spelling (no 'x-guidance', no control characters)", "others")

    def root(self) -> SetPlace | None:
        found = self._place([self._schema])
        while self._open:
            place, schemas = self._open.pop()
            self._below(place, schemas)
        self._prune()
        return found if found is not None and self._reaches(found) else None

    def _place(self, schemas: list[Any]) -> SetPlace | None:
        """Of a value of which these say something."""
        closed = self._closed(schemas)
        if not any(closed):
            return None  # nothing, or anything at all
        key = frozenset(id(each) if each else 0 for each in closed)
        if key not in self._made:
            if len(self._made) >= _MOST:
                raise _refused(f"at most {_MOST} places where values may be", "more")
            self._made[key] = place = SetPlace(self._unique(closed))
            self._open.append((place, closed))
        return self._made[key]

    def _closed(self, schemas: list[Any]) -> list[Mapping[str, Any]]:
        """Those schemas, and all that they refer to of the same value, each once; {}: anything."""
        found: dict[int, Mapping[str, Any]] = {}
        left = list(schemas)
        while left:
            schema = left.pop()
            self._steps += 1
            if self._steps > _STEPS:
                raise _refused(f"a schema that is read in {_STEPS} steps", "a larger one")
            if schema is False:
                continue
            if schema is True or not schema:
                found[0] = {}
                continue
            if not isinstance(schema, Mapping) or id(schema) in found:
                continue
            found[id(schema)] = schema
            if not _UNREAD.isdisjoint(schema):
                raise _refused("no other keywords that look at whole values", sorted(_UNREAD.intersection(schema))[0])
            if any(isinstance(value, list | dict) for value in _given(schema)):
                raise _refused("no arrays or objects in 'const' and 'enum'", "one")
            if "$ref" in schema:
                target = named(self._schema, schema["$ref"])
                if target is None:
                    raise _refused("references by '#/...'", str(schema["$ref"])[:80])
                left.append(target)
            for key in _WAYS:
                left += listed(schema, key)
        return [found[key] for key in sorted(found)]

    def _unique(self, closed: list[Mapping[str, Any]]) -> Items | None:
        if not any(schema.get("uniqueItems") is True for schema in closed):
            return None
        arrays = [schema for schema in closed if _speaks(schema, "array", _ARRAYS)]
        if len(arrays) != 1:
            raise _refused(
                "one schema alone of an array (of alternatives, those with 'additionalProperties' false)",
                f"{len(arrays)} that may say something of it",
            )
        schema = arrays[0]
        if over := sorted(set(schema) - _BESIDE):
            raise _refused("it beside 'items', 'minItems' and 'maxItems'", repr(over[0])[:80])
        items, least = items_of(schema.get("items", True), self._schema), schema.get("minItems", 0)
        if items is None:
            raise _refused(
                "items that are strings, whole numbers or of an enum",
                "others (objects, patterns, formats); leave it out and drop what is there twice",
            )
        if items.left(b"") < max(1, least if isinstance(least, int) else 1):
            raise _refused("as many different items as must be there", f"{items.left(b'')}")
        return items

    def _below(self, place: SetPlace, closed: list[Mapping[str, Any]]) -> None:
        objects = [schema for schema in closed if _speaks(schema, "object", _OBJECTS)]
        names = {name for schema in objects for name in _map(schema, "properties")}
        place.names = {name: self._place(list(_members(objects, name))) for name in sorted(names)}
        place.other = self._place(list(_members(objects, None)))
        arrays = [schema for schema in closed if _speaks(schema, "array", _ARRAYS)]
        most = max((len(listed(schema, "prefixItems")) for schema in arrays), default=0)
        of = [[*listed(schema, "prefixItems"), schema.get("items", True)] for schema in arrays]
        place.first = [self._place([each[min(at, len(each) - 1)] for each in of]) for at in range(most)]
        place.rest = self._place([each[-1] for each in of])

    def _prune(self) -> None:
        """Forget places from which no such array is reached."""
        above: dict[int, list[SetPlace]] = {}
        for place in self._made.values():
            for below in _all_below(place):
                if below is not None:
                    above.setdefault(id(below), []).append(place)
        left = [place for place in self._made.values() if place.unique is not None]
        self._good = {id(place) for place in left}
        while left:
            for place in above.get(id(left.pop()), []):
                if id(place) not in self._good:
                    self._good.add(id(place))
                    left.append(place)
        for place in self._made.values():
            place.names = {name: below if self._reaches(below) else None for name, below in place.names.items()}
            place.other = place.other if self._reaches(place.other) else None
            place.first = [below if self._reaches(below) else None for below in place.first]
            place.rest = place.rest if self._reaches(place.rest) else None

    def _reaches(self, place: SetPlace | None) -> bool:
        return place is not None and id(place) in self._good


def _all_below(place: SetPlace) -> Iterator[SetPlace | None]:
    yield from place.names.values()
    yield from place.first
    yield from (place.other, place.rest)


def _speaks(schema: Mapping[str, Any], kind: str, keywords: frozenset[str]) -> bool:
    """Whether a schema says something of values of this kind, or allows any of them."""
    if _given(schema):
        return False
    if kind not in _listed_types(schema, kind):
        return False
    through = "$ref" in schema or any(key in schema for key in _WAYS)
    return not through or not keywords.isdisjoint(schema)


def _listed_types(schema: Mapping[str, Any], kind: str) -> list[Any]:
    found = schema.get("type", [kind])
    return found if isinstance(found, list) else [found]


def _given(schema: Mapping[str, Any]) -> list[Any]:
    return [*listed(schema, "enum"), *([schema["const"]] if "const" in schema else [])]


def _map(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = schema.get(key)
    return found if isinstance(found, Mapping) else {}


def _members(objects: list[Mapping[str, Any]], name: str | None) -> Iterator[Any]:
    """What objects say of a member of this name; None: of one that nobody lists. Wider: patterns count for all."""
    for schema in objects:
        known = _map(schema, "properties")
        if name is not None and name in known:
            yield known[name]
        else:
            yield schema.get("additionalProperties", True)
        yield from _map(schema, "patternProperties").values()


def _refused(expected: str, found: str) -> UsageError:
    return UsageError(f"'uniqueItems': expected {expected}, found {found}")
