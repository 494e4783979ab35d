"""Keywords of JSON Schema that the engine has not, said by those that it has: `not`, `if`, `dependentSchemas`,
`contains`, `unevaluatedProperties`, `unevaluatedItems`, `uniqueItems`.

Each becomes schemas for `allOf`. What is found lets no document pass that the standard refuses; where it lets fewer
pass the docstring says so. What cannot be said stays as it is, and the engine refuses it by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, permutations
from typing import Any

from swarm.model.schema_negation import Negation, either, every
from swarm.model.schema_parts import NOTES, TYPES, listed, named, type_of

WAYS = 300
"""Alternatives that one keyword may become."""
MOST_VALUES = 4
"""Values whose arrays with `uniqueItems` are written out, in any order: 65 ways."""
_NO_ARRAY = [kind for kind in TYPES if kind != "array"]
_ITEMS_DEPENDING = frozenset("anyOf oneOf if contains $dynamicRef $recursiveRef".split())
_DEPENDING = frozenset("anyOf oneOf if dependentSchemas $dynamicRef $recursiveRef unevaluatedProperties".split())
FIRST = 8
"""`contains`: the items that count are among so many first ones."""


def conditions(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    """The schema with what can be said otherwise said so; False where nothing fits."""
    made = dict(schema)
    more: list[Any] = []
    for read in (_unevaluated, _unevaluated_items, _not, _if, _dependent_schemas, _contains, _unique):
        found = read(made, root)
        if found is False:
            return False
        if found is not None and found is not True:
            more.append(found)
    return {**made, "allOf": [*listed(made, "allOf"), *more]} if more else made


def _not(made: dict[str, Any], root: Mapping[str, Any]) -> Any:
    if "not" not in made:
        return None
    found = Negation(root).of(made["not"])
    if found is not None:
        del made["not"]
    return found


def _if(made: dict[str, Any], root: Mapping[str, Any]) -> Any:
    """With the condition and `then`, or without it and `else`."""
    if "if" not in made or not ("then" in made or "else" in made):
        return None
    condition = made["if"]
    without = Negation(root).of(condition)
    if without is None:
        return None
    del made["if"]
    return either([every([condition, made.pop("then", True)]), every([without, made.pop("else", True)])])


def _dependent_schemas(made: dict[str, Any], root: Mapping[str, Any]) -> Any:
    """Without the one member, or as the schema says."""
    needs = made.get("dependentSchemas")
    if not isinstance(needs, Mapping):
        return None
    del made["dependentSchemas"]
    return every(
        [
            either([{"properties": {name: False}}, every([{"required": [name]}, schema])])
            for name, schema in needs.items()
            if schema is not True
        ]
    )


def _contains(made: dict[str, Any], root: Mapping[str, Any]) -> Any:
    """One way for each choice of places. Stricter: those that count are among the FIRST items."""
    if "contains" not in made:
        return None
    least, most, wanted = made.get("minContains", 1), made.get("maxContains"), made["contains"]
    counts = [count for count in (least, most) if count is not None]
    if not all(isinstance(count, int | float) and float(count).is_integer() and count >= 0 for count in counts):
        return None
    other = True if most is None else Negation(root).of(wanted)
    ways: list[Any] = []
    for number in [int(least)] if most is None else range(int(least), min(int(most), FIRST) + 1):
        if other is None or number > FIRST:
            return None
        for places in combinations(range(FIRST), number):
            first = [wanted if place in places else other for place in range(places[-1] + 1 if places else 0)]
            listing = {"prefixItems": first} if first else {}
            ways.append({"type": "array", **listing, "items": other, "minItems": len(first)})
            if len(ways) > WAYS:
                return None
    for key in ("contains", "minContains", "maxContains"):
        made.pop(key, None)
    return either([*ways, {"type": _NO_ARRAY}]) if int(least) or most is not None else True


def _unevaluated(made: dict[str, Any], root: Mapping[str, Any]) -> Any:
    """`unevaluatedProperties` where the members that others look at are known without looking at a document."""
    if "unevaluatedProperties" not in made:
        return None
    seen: dict[str, dict[str, Any]] = {"properties": {}, "patternProperties": {}}
    rest = made["unevaluatedProperties"]
    looked = _looked_at({key: value for key, value in made.items() if key != "unevaluatedProperties"}, root, seen, 16)
    if looked is None:
        return None
    del made["unevaluatedProperties"]
    return True if looked else {**{key: value for key, value in seen.items() if value}, "additionalProperties": rest}


def _looked_at(schema: Any, root: Mapping[str, Any], seen: dict[str, dict[str, Any]], depth: int) -> bool | None:
    """Whether all members are; adds to `seen` which. None: it depends on the document."""
    if isinstance(schema, bool):
        return False
    if not isinstance(schema, Mapping) or depth < 0 or not _DEPENDING.isdisjoint(schema):
        return None
    everything = "additionalProperties" in schema
    for key, names in seen.items():
        found = schema.get(key, {})
        if not isinstance(found, Mapping):
            return None
        names.update(dict.fromkeys(found, True))
    below = listed(schema, "allOf")
    if "$ref" in schema:
        target = named(root, schema["$ref"])
        if target is None:
            return None
        below = [*below, target]
    for part in below:
        found = _looked_at(part, root, seen, depth - 1)
        if found is None:
            return None
        everything = everything or found
    return everything


def _unevaluated_items(made: dict[str, Any], root: Mapping[str, Any]) -> Any:
    """`unevaluatedItems` where it is known without looking at a document how many first items others look at."""
    if "unevaluatedItems" not in made:
        return None
    others = {key: value for key, value in made.items() if key != "unevaluatedItems"}
    first = _first_looked_at(others, root, 16)
    if first is None or first == _ALL:
        if first == _ALL:
            del made["unevaluatedItems"]
        return None
    rest = made.pop("unevaluatedItems")
    return {**({"prefixItems": [True] * first} if first else {}), "items": rest}


_ALL = 1 << 20
"""More first items than a schema has."""


def _first_looked_at(schema: Any, root: Mapping[str, Any], depth: int) -> int | None:
    """How many first items are looked at. None: it depends on the document."""
    if isinstance(schema, bool):
        return 0
    if not isinstance(schema, Mapping) or depth < 0 or not _ITEMS_DEPENDING.isdisjoint(schema):
        return None
    if "items" in schema or "unevaluatedItems" in schema:
        return _ALL
    most, below = len(listed(schema, "prefixItems")), listed(schema, "allOf")
    if "$ref" in schema:
        target = named(root, schema["$ref"])
        if target is None:
            return None
        below = [*below, target]
    for part in below:
        found = _first_looked_at(part, root, depth - 1)
        if found is None:
            return None
        most = max(most, found)
    return most


def _unique(made: dict[str, Any], root: Mapping[str, Any]) -> Any:
    """`uniqueItems` of items with few values, each order as a way; others stay, for `swarm.model.distinct`."""
    if made.get("uniqueItems") is not True or "prefixItems" in made:
        return None
    least, most = made.get("minItems", 0), made.get("maxItems")
    if isinstance(most, int | float) and most <= 1:
        del made["uniqueItems"]
        return None
    values = values_of(made.get("items"), root)
    if values is None or len(values) > MOST_VALUES or not isinstance(least, int) or not isinstance(most, int | None):
        return None
    ways: list[Any] = []
    for count in range(least, (len(values) if most is None else min(most, len(values))) + 1):
        for items in permutations(values, count):
            first = [{"const": item} for item in items]
            ways.append(
                {"type": "array", **({"prefixItems": first} if first else {}), "items": False, "minItems": count}
            )
            if len(ways) > WAYS:
                return None
    for key in ("uniqueItems", "items", "minItems", "maxItems"):
        made.pop(key, None)
    return either([*ways, *([] if made.get("type") == "array" else [{"type": _NO_ARRAY}])])


def values_of(schema: Any, root: Mapping[str, Any]) -> list[Any] | None:
    """All values that fit, where they are few and no objects or arrays; each once."""
    if isinstance(schema, Mapping) and set(schema) - NOTES == {"$ref"}:
        schema = named(root, schema["$ref"])
    if not isinstance(schema, Mapping) or set(schema) - NOTES - {"type", "enum", "const"}:
        return None
    kinds = schema.get("type", TYPES)
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if "enum" in schema or "const" in schema:
        given = listed(schema, "enum") if "enum" in schema else [schema["const"]]
        if "const" in schema and "enum" in schema:
            return None
    elif kinds <= {"boolean", "null"}:
        given = [value for value in (True, False, None) if type_of(value) in kinds]
    else:
        return None
    if any(isinstance(value, list | dict) for value in given):
        return None
    fitting = [value for value in given if type_of(value) in kinds or ("integer" in kinds and _whole(value))]
    return list({(type_of(value), value): value for value in fitting}.values())


def _whole(value: Any) -> bool:
    return type_of(value) == "number" and float(value).is_integer()
