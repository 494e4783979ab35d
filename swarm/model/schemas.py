"""JSON Schemas as the engine is given them: what it would not read as the standard (draft 2020-12) says is written in
other words, or refused by name.

The engine refuses most of what it cannot hold. What is done here is the rest: keywords that say nothing are left out,
some that it does not know are said by others, dates are made exact, and what it would get wrong in silence is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from swarm.base.errors import UsageError
from swarm.model.lookaround import without_lookahead
from swarm.model.schema_conditions import conditions
from swarm.model.schema_parts import STANDARD_FORMATS, TYPES, listed

_ONE = "additionalProperties additionalItems contains not if then else propertyNames contentSchema items".split() + [
    "unevaluatedItems",
    "unevaluatedProperties",
]
_DATA = frozenset("const enum default example examples required x-guidance".split())
"""Keywords whose values are no schemas."""
_NAMED = frozenset("properties patternProperties $defs definitions dependentSchemas dependencies".split())
"""Keywords whose values have schemas under names that are no keywords."""
_NOTES = frozenset("title description $comment default example examples".split())
_COUNTS = "minLength maxLength minItems maxItems minProperties maxProperties minContains maxContains".split()
_BOUNDS = "minimum maximum exclusiveMinimum exclusiveMaximum".split()
_MOST = 10_000
"""Schemas that one may become: what is said by alternatives of alternatives grows with each."""
_EXACT = 2**53
"""Bounds of numbers up to here are read as they are written. Wider ones are taken as this one, which is stricter."""

_LEAP = "(?:..(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DAY = f"(?:.{{5}}(?:0[13-9]|1.)-..|.{{5}}02-(?:[01].|2[0-8])|{_LEAP}-02-29)"
_SECOND = "(?:.{6}[0-5]|23:59:60[.0-9]*(?:[zZ]|.00:00)$)"
_DATES = {"date": f"^{_DAY}$", "time": f"^{_SECOND}", "date-time": f"^{_DAY}.{_SECOND}"}
"""What the engine's own patterns leave open: 29 February of common years, and leap seconds at other times than 23:59
UTC. Those are taken where they are written in UTC."""

_NAMES = {
    "date": r"^(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|"
    r"02-(?:0[1-9]|1[0-9]|2[0-8])))$",
    "uuid": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
}
"""Formats of members' names, which are patterns to the engine. Stricter: no 29 February."""
_NO_DOTS = r"^(?!\.)(?!.*\.\.)"
"""What zod says of addresses, with look-ahead, which the engine has not: its own pattern of addresses says it too."""
_WEEKS = "^P(?:(\\d+W)|(?!.*W)"
"""How zod's pattern of durations begins, which looks ahead as well; the format says it."""
_ESCAPES = 'nrbtf\\"'
"""How characters are escaped: each in one way. As `\\u0061` a name would pass for another one than `a`."""


def exact(schema: Any) -> dict[str, Any]:
    """The schema as the engine is to read it. Raises UsageError naming the keyword."""
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        found = "false, which nothing fits" if schema is False else type(schema).__name__
        raise UsageError(f"expected a JSON Schema that is an object, found {found}")
    inner = json.dumps({**schema, "$id": ""}).count('"$id"') > 1  # then a pointer may start elsewhere
    if not inner:
        schema = _static(schema)
    found = _exact(schema, {} if inner else schema, iter(range(_MOST)))
    if found is False:
        raise UsageError(
            "'not', 'if' or 'uniqueItems': expected a schema that something fits, found one that nothing does"
        )
    made = dict(found)
    options = made.get("x-guidance", {})
    if not isinstance(options, dict):
        raise UsageError(f"expected 'x-guidance' to be an object, found {type(options).__name__}")
    if not _has_controls(schema):
        made["x-guidance"] = {"json_allowed_escapes": _ESCAPES, **options}
    elif _open_names(schema):
        raise UsageError("control characters in a schema go only with objects whose names are all given")
    return made


def rebuilt(schema: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """A copy of the schema with each schema that it has directly below it changed.

    Keywords that nobody knows may hold schemas that a `$ref` names, so what is below them counts as such.
    """
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _DATA:
            made[key] = value
        elif key in _NAMED and isinstance(value, dict):
            made[key] = {name: change(below) for name, below in value.items()}
        elif isinstance(value, list):
            made[key] = [change(below) for below in value]
        else:
            made[key] = change(value) if isinstance(value, dict) or key in _ONE else value
    return made


def _exact(schema: Any, root: Mapping[str, Any], left: Iterator[int]) -> Any:
    """The same for a schema anywhere in it, and for what is no schema. `left`: how many more may be looked at."""
    if not isinstance(schema, Mapping):
        return schema
    if next(left, None) is None:
        raise UsageError(
            f"'if', 'not', 'contains' and 'uniqueItems': expected them to become at most {_MOST} schemas of other "
            "keywords, found more; make it simpler"
        )
    said = {key: value for key, value in schema.items() if not _says_nothing(key, value, schema)}
    schema = conditions(said, root)
    if schema is False:
        return False
    below = rebuilt(schema, lambda part: _exact(part, root, left))
    made = dict(below)
    for key in _COUNTS:
        if isinstance(value := made.get(key), float) and value.is_integer():
            made[key] = int(value)
    for key in _BOUNDS:
        _bound(made, key)
    _check_least(made)
    _dated(made)
    _names(made, root)
    _dependent(made)
    if "type" not in made and any(isinstance(part, dict) and "$ref" in part for part in listed(made, "oneOf")):
        made["type"] = TYPES  # so that references are followed before it is seen whether the parts exclude each other
    return made


def _says_nothing(key: str, value: Any, schema: Mapping[str, Any]) -> bool:
    match key:
        case "uniqueItems" | "not":
            return value is False
        case "unevaluatedItems" | "unevaluatedProperties" | "propertyNames":
            return value is True or bool(value == {})
        case "dependentRequired" | "dependentSchemas":
            return bool(value == {})
        case "minContains" | "maxContains":
            return "contains" not in schema
        case "then" | "else":
            return "if" not in schema
        case "if":
            rest = (schema.get("unevaluatedItems", True), schema.get("unevaluatedProperties", True))
            looked_at = any(each is not True and each != {} for each in rest)  # what it names counts there
            return "then" not in schema and "else" not in schema and not looked_at
        case "format":
            return isinstance(value, str) and value not in STANDARD_FORMATS
        case _:
            return False


def _bound(schema: dict[str, Any], key: str) -> None:
    """A bound that the engine reads exactly. Raises UsageError where no such bound is within what was asked for."""
    value = schema.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) <= _EXACT:
        return
    if ("max" in key.lower()) != (value > 0):
        raise UsageError(
            f"'{key}': expected a number of at most 2^53 (9007199254740992) in size, found {str(value):.40}"
        )
    schema[key] = _EXACT if value > 0 else -_EXACT


def _check_least(schema: Mapping[str, Any]) -> None:
    """Names of members beyond those that are listed are not held to be different ones, so they cannot be counted."""
    least = schema.get("minProperties")
    if not isinstance(least, int) or least < 2:
        return
    listed = {*_names_in(schema.get("properties")), *_names_in(schema.get("required"))}
    if least - len(listed) >= 2:
        raise UsageError(
            f"'minProperties': at most one member beyond those in 'properties' and 'required' can be asked for, found "
            f"{least} of which {len(listed)} are listed"
        )


def _dated(schema: dict[str, Any]) -> None:
    form = schema.get("format")
    if form == "duration" and str(schema.get("pattern")).startswith(_WEEKS):
        del schema["pattern"]
    if form == "email" and str(schema.get("pattern")).startswith(_NO_DOTS):
        schema["pattern"] = "^" + schema["pattern"].removeprefix(_NO_DOTS)
    if isinstance(given := schema.get("pattern"), str) and (parts := without_lookahead(given)) is not None:
        schema["pattern"] = parts[-1]
        schema["allOf"] = [*listed(schema, "allOf"), *({"pattern": part} for part in parts[:-1])]
    pattern = _DATES.get(form) if isinstance(form, str) else None
    if pattern is None:
        return
    if "pattern" in schema:
        schema["allOf"] = [*listed(schema, "allOf"), {"pattern": pattern}]
    else:
        schema["pattern"] = pattern


def _names(schema: dict[str, Any], root: Mapping[str, Any]) -> None:
    """`propertyNames` of an object that names no members itself, by the names or the pattern that it gives."""
    rule = schema.get("propertyNames")
    if isinstance(rule, dict) and set(rule) == {"$ref"} and str(rule["$ref"]).startswith("#/$defs/"):
        defs = root.get("$defs")
        rule = defs.get(str(rule["$ref"]).removeprefix("#/$defs/")) if isinstance(defs, dict) else None
    if not isinstance(rule, dict) or "properties" in schema or "patternProperties" in schema:
        return
    said = {key: value for key, value in rule.items() if key not in ("type", "title", "description")}
    if rule.get("type", "string") != "string":
        return
    if not said:
        del schema["propertyNames"]
        return
    said = _name_pattern(said)
    if len(said) != 1:
        return
    (how, value), members = next(iter(said.items())), schema.get("additionalProperties", True)
    if how == "pattern" and isinstance(value, str):
        put = {"patternProperties": {value: members}, "additionalProperties": False}
    elif how in ("enum", "const") and all(isinstance(name, str) for name in (value if how == "enum" else [value])):
        put = {"properties": dict.fromkeys(value if how == "enum" else [value], members), "additionalProperties": False}
    else:
        return
    del schema["propertyNames"]
    schema.update(put)


def _name_pattern(rule: dict[str, Any]) -> dict[str, Any]:
    """Lengths and formats of names as a pattern."""
    if set(rule) <= {"minLength", "maxLength"} and all(isinstance(count, int) for count in rule.values()):
        return {"pattern": rf"^[\s\S]{{{rule.get('minLength', 0)},{rule.get('maxLength', '')}}}$"}
    form = rule.get("format")
    if not isinstance(form, str) or form not in _NAMES or rule.get("pattern") != _DATES.get(form) or len(rule) > 2:
        return rule
    return {"pattern": _NAMES[form]}


def _static(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """`$dynamicRef` in a document of one resource names the same wherever one comes from, where each name is there
    once."""
    names: list[str] = []
    references: list[str] = []

    def look(below: Any) -> Any:
        if isinstance(below, Mapping):
            if isinstance(name := below.get("$dynamicAnchor"), str):
                names.append(name)
            if isinstance(name := below.get("$dynamicRef"), str):
                references.append(name)
            rebuilt(below, look)
        return below

    def change(below: Any) -> Any:
        if not isinstance(below, Mapping):
            return below
        words: dict[str, str] = {"$dynamicAnchor": "$anchor", "$dynamicRef": "$ref"}
        return rebuilt({words.get(str(key), str(key)): value for key, value in below.items()}, change)

    look(schema)
    clash = any("$anchor" in below or "$ref" in below for below in _with(schema, "$dynamicAnchor", "$dynamicRef"))
    plain = len(set(names)) == len(names) and {f"#{name}" for name in names} >= set(references)
    return dict(change(schema)) if references and plain and not clash else schema


def _with(schema: Any, *keys: str) -> list[Mapping[str, Any]]:
    """All schemas in it that have one of the keywords."""
    found: list[Mapping[str, Any]] = []

    def look(below: Any) -> Any:
        if isinstance(below, Mapping):
            if any(key in below for key in keys):
                found.append(below)
            rebuilt(below, look)
        return below

    look(schema)
    return found


def _dependent(schema: dict[str, Any]) -> None:
    """`dependentRequired`: without the one member, or with the others."""
    needs = schema.get("dependentRequired")
    if not isinstance(needs, dict) or not all(isinstance(others, list) for others in needs.values()):
        return
    del schema["dependentRequired"]
    either = [
        {"anyOf": [{"properties": {name: False}}, {"required": [name, *others]}]}
        for name, others in needs.items()
        if others
    ]
    if either:
        schema["allOf"] = [*listed(schema, "allOf"), *either]


def _has_controls(value: Any) -> bool:
    """Whether answers need characters that can only be written as `\\u` and four digits. What is said to people, and
    escapes within patterns, do not count."""
    if isinstance(value, str):
        return any((letter < " " and letter not in "\b\f\n\r\t") or letter == "\x7f" for letter in value)
    if isinstance(value, Mapping):
        return any(
            _has_controls(name) or (name not in _NOTES and _has_controls(below)) for name, below in value.items()
        )
    return isinstance(value, list) and any(_has_controls(below) for below in value)


def _open_names(schema: Any) -> bool:
    """Whether an object of it may have members beside those that it names."""
    found = False

    def look(below: Any) -> Any:
        nonlocal found
        if isinstance(below, Mapping):
            named = any(key in below for key in ("properties", "patternProperties", "required"))
            found = found or (named and below.get("additionalProperties") is not False)
            rebuilt(below, look)
        return below

    look(schema)
    return found


def _names_in(value: Any) -> set[str]:
    return {name for name in value if isinstance(name, str)} if isinstance(value, dict | list) else set()
