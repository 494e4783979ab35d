"""Schemas that the engine would read otherwise than the standard says: made exact, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from swarm.base.errors import UsageError
from swarm.model.constraint import MAX_CHARS
from swarm.model.grammars import from_schema
from swarm.model.schema_ends import require_end
from swarm.model.schemas import exact, rebuilt
from tests.swarm.model.lettered import allows, lettered

PETS = {
    name: {
        "type": "object",
        "properties": {"kind": {"const": name}},
        "required": ["kind"],
        "additionalProperties": False,
    }
    for name in ("cat", "dog")
}
EITHER = [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}]
A = {"a": {"type": "integer"}}

EXACT: list[tuple[Any, list[str], list[str]]] = [
    (True, ["1", '{"a": []}'], ["x"]),
    ({"properties": A}, ['{"a": 1}', '{"b": "x"}', '"a"'], ['{"a": "x"}', r'{"\u0061": "x"}', '{"a": 1, "a": 2}']),
    ({"patternProperties": {"^a": {"type": "integer"}}}, ['{"ab": 1}', '{"b": ""}'], [r'{"\u0061": "x"}']),
    ({"const": "nul \0"}, [r'"nul \u0000"'], ['"nul "']),
    ({"properties": A, "description": "\1"}, ['{"a": 1}'], [r'{"\u0061": "x"}']),
    ({"properties": {"b": {"pattern": "^[^\\u0000-\\u001f]$"}}}, ['{"b": "x"}'], [r'{"\u0062": ""}']),
    ({"maxLength": 2.0, "minLength": 1.0}, ['"ab"'], ['""', '"abc"']),
    ({"uniqueItems": False, "type": "array"}, ["[1, 1]"], ["1"]),
    ({"not": False, "if": {}, "maxContains": 2, "unevaluatedItems": True}, ["[1]"], ["x"]),
    ({"then": False, "else": False, "type": "array"}, ["[1]"], ["x"]),
    ({"type": "string", "format": "password"}, ['"x"'], ["1"]),
    ({"format": "file-path"}, ['"x"', "1"], []),
    ({"format": "date"}, ['"2024-02-29"', '"2000-02-29"', '"2023-02-28"', "7"], ['"2023-02-29"', '"1900-02-29"']),
    ({"format": "date", "pattern": "^2"}, ['"2024-02-29"'], ['"2023-02-29"', '"1999-12-31"']),
    (
        {"format": "time"},
        ['"23:59:60Z"', '"01:02:03+05:30"', '"23:59:60.5+00:00"'],
        ['"22:59:60Z"', '"23:59:60+01:00"'],
    ),
    (
        {"format": "date-time"},
        ['"2024-02-29T23:59:60Z"', '"1999-12-31t01:02:03.25-08:00"'],
        ['"2023-02-29T01:00:00Z"', '"2024-01-01T23:58:60Z"', '"2024-01-01"'],
    ),
    (
        {"dependentRequired": {"a": ["b"], "c": []}, "properties": {"a": {}, "b": {}}},
        ["{}", '{"b": 1}', '{"a": 1, "b": 1}', "3", '{"c": 1}'],
        ['{"a": 1}', '{"a": 1, "c": 1}'],
    ),
    (
        {"type": "object", "propertyNames": {"enum": ["x", "y"]}, "additionalProperties": {"type": "integer"}},
        ["{}", '{"y": 1}', '{"x": 1, "y": 2}'],
        ['{"z": 1}', '{"x": ""}'],
    ),
    (
        {"propertyNames": {"$ref": "#/$defs/K"}, "$defs": {"K": {"enum": ["x"], "title": "K", "type": "string"}}},
        ['{"x": 1}', "{}"],
        ['{"z": 1}'],
    ),
    (
        {"format": "email", "pattern": r"^(?!\.)(?!.*\.\.)([a-z.]*)[a-z]@([a-z]+\.)+[a-z]{2,}$"},
        ['"a.b@c.de"'],
        ['".a@c.de"', '"a..b@c.de"', '"a@c..de"', '"a@c"', '"A@c.de"'],
    ),
    ({"propertyNames": {"type": "string", "pattern": "^a+$"}}, ['{"aa": []}', "1"], ['{"ab": []}']),
    ({"propertyNames": {"const": "a"}, "required": ["a"]}, ['{"a": 1}'], ["{}", '{"a": 1, "b": 1}']),
    ({"oneOf": EITHER, "$defs": PETS}, ['{"kind": "cat"}', '{"kind": "dog"}'], ['{"kind": "cow"}', "1"]),
    ({"$ref": "#/x/y", "x": {"y": {"format": "date"}}}, ['"2024-02-29"'], ['"2023-02-29"']),
    ({"properties": {"format": {"type": "null"}, "not": A["a"]}}, ['{"format": null, "not": 1}'], ['{"format": "x"}']),
    ({"enum": [{"format": "x", "uniqueItems": False}]}, ['{"format": "x", "uniqueItems": false}'], ["{}"]),
    # What zod says of records and of members that must not be, and pydantic of sets and of names.
    ({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": A["a"]}, ['{"x": 1}'], ["1"]),
    ({"type": "object", "properties": {"a": {"not": {}}}}, ["{}", '{"b": 1}'], ['{"a": 1}']),
    ({"type": "object", "propertyNames": {"maxLength": 2, "minLength": 1}}, ['{"ab": 1}'], ['{"abc": 1}', '{"": 1}']),
    ({"propertyNames": {"format": "date"}}, ['{"2024-01-31": 1}'], ['{"2024-02-30": 1}', '{"x": 1}']),
    (
        {"type": "array", "items": {"$ref": "#/$defs/C"}, "uniqueItems": True, "$defs": {"C": {"enum": ["r", "g"]}}},
        ["[]", '["r"]', '["g", "r"]', '["r", "g"]'],
        ['["r", "r"]', '["g", "r", "g"]', '["b"]'],
    ),
    ({"items": {"enum": [1, True, "1"]}, "uniqueItems": True}, ["[1, true]", "3"], ["[1, 1]"]),
    (
        {"type": "array", "items": {"enum": list("abcdef")}, "uniqueItems": True},
        ['["b", "e"]', '["e", "b"]'],
        ['["b", "b"]'],
    ),
    ({"type": "array", "uniqueItems": True, "maxItems": 1}, ["[[1]]"], ["[1, 1]"]),
    ({"type": "number", "maximum": 3.4e38, "minimum": -3.4e38}, ["1.5", "-9"], ['""']),
    ({"type": "integer", "maximum": 2**63 - 1}, ["7"], ["9223372036854775808", "1.5"]),
    # Look-ahead at a pattern's beginning.
    ({"pattern": r"^(?=.*[A-Z])(?=.*\d)(?!.*\s).{4,}$"}, ['"aB3d"'], ['"ab3d"', '"aB d3"', '"B3"']),
    ({"pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}, ['"1.5"', '"-.5"'], ['"-"', '"."', '""']),
    ({"pattern": r"^(?!x)[a-z]*$"}, ['"a"', '""', '"ax"'], ['"xa"']),
    # What must not be, and what depends on it.
    ({"not": {"type": ["string", "integer"]}}, ["null", "[1]"], ['"x"', "1"]),
    ({"not": {"enum": ["cat", "car", 2, None]}}, ['"ca"', '"cats"', '""', "1", "2.5", "{}"], ['"cat"', "2", "null"]),
    ({"not": {"anyOf": [{"minLength": 3}, {"type": "number"}]}}, ['"ab"'], ['"abc"', "1", "null"]),
    (
        {
            "type": "object",
            "properties": {"kind": {"enum": ["cat", "dog"]}, "lives": A["a"], "good": {"type": "boolean"}},
            "if": {"properties": {"kind": {"const": "cat"}}, "required": ["kind"]},
            "then": {"required": ["lives"]},
            "else": {"required": ["good"]},
            "additionalProperties": False,
        },
        ['{"kind": "cat", "lives": 9}', '{"kind": "dog", "good": true}', '{"good": true}'],
        ['{"kind": "cat"}', '{"kind": "cat", "good": true}', '{"kind": "dog", "lives": 1}', "{}"],
    ),
    (
        {"properties": {"a": {}, "b": {}}, "dependentSchemas": {"a": {"required": ["b"]}, "c": False}},
        ["{}", '{"b": 1}', '{"a": 1, "b": 1}', "1"],
        ['{"a": 1}', '{"c": 1}'],
    ),
    ({"contains": {"const": 1}, "maxContains": 2}, ["[1]", "[0, 1, 1]", '""'], ["[]", "[0]", "[1, 1, 1]"]),
    (
        {
            "allOf": [{"properties": A}, {"$ref": "#/$defs/B"}],
            "unevaluatedProperties": False,
            "$defs": {"B": {"properties": {"b": {"type": "null"}}}},
        },
        ['{"a": 1, "b": null}', "{}"],
        ['{"c": 1}', '{"b": 1}'],
    ),
    (
        {
            "allOf": [{"prefixItems": [A["a"]]}, {"$ref": "#/$defs/B"}],
            "unevaluatedItems": {"type": "null"},
            "$defs": {"B": {"prefixItems": [True, {"type": "string"}]}},
        },
        ['[1, "b", null, null]', "[]", "1"],
        ['[1, "b", 1]', "[null]", "[1, 1]"],
    ),
    ({"type": "array", "items": A["a"], "unevaluatedItems": False}, ["[1, 2]"], ['["a"]']),
    ({"unevaluatedItems": False}, ["[]", "1"], ["[1]"]),
    (
        {"$dynamicAnchor": "t", "type": "array", "items": {"$dynamicRef": "#t"}},
        ["[[], [[]]]"],
        ["[1]", "1"],
    ),
    ({"required": ["b"], "minProperties": 2}, ['{"b": 1, "c": 1}'], ['{"b": 1}', '{"b": 1, "b": 1}']),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), EXACT)
def test_schemas_are_read_as_the_standard_says(schema: Any, right: list[str], wrong: list[str]) -> None:
    held = lettered().held(from_schema(schema))
    assert [text for text in right if not allows(held, text)] == []
    assert [text for text in wrong if allows(held, text)] == []


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (False, "false"),
        ({"type": "integer", "maximum": -(2**53) - 1}, "'maximum'"),
        ({"items": {"minimum": 1e19}}, "'minimum'"),
        ({"not": {}}, "'not'"),
        ({"type": "integer", "not": {"maximum": 2**60}}, "exclusiveMinimum"),
        ({"type": "object", "minProperties": 2}, "'minProperties'"),
        ({"allOf": [{"minProperties": 3, "required": ["a"]}]}, "'minProperties'"),
        ({"const": "\x01", "properties": A}, "control characters"),
        ({"x-guidance": 1}, "x-guidance"),
        ([], "list"),
        ({"enum": ["x" * 40_000]}, "at most"),
        (json.loads('{"items":' * 900 + "{}" + "}" * 900), "too deep"),
        ("{", "JSON"),
        ('{"a": NaN}', "JSON"),
        ('{"maximum": ' + "9" * 5000 + "}", "JSON"),
        (" " * (MAX_CHARS + 1), "at most"),
    ],
)
def test_what_would_be_read_wrong_is_refused_by_name(schema: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        from_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"uniqueItems": True, "items": {"type": "object"}},
        {"not": {"pattern": "x"}},
        {"if": {"items": {"const": 1}}, "then": {"maxItems": 2}},
        {"contains": {"const": 1}, "minContains": 9},
        {"anyOf": [{"properties": A}, {}], "unevaluatedProperties": False},
        {"anyOf": [{"prefixItems": [True]}, {}], "unevaluatedItems": False},
        {"pattern": "^(?=a)b|c$"},
        {"pattern": "a(?!b)"},
        {"pattern": "^(?!ab)c"},
    ],
)
def test_what_cannot_be_said_otherwise_is_refused_by_its_name(schema: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="|".join([*schema, "look-around"])):
        lettered().held(from_schema(schema))


def test_alternatives_of_alternatives_end() -> None:
    schema: Any = {"const": 1}
    for _ in range(6):
        schema = {"contains": schema, "minContains": 3}
    with pytest.raises(UsageError, match="'contains'"):
        from_schema(schema)


NEXT: dict[str, Any] = {"type": "object", "properties": {"v": {"type": "null"}, "next": {"$ref": "#"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"allOf": [{"$ref": "#/$defs/a"}]}}},
        {**NEXT, "required": ["v", "next"]},
        {"type": "array", "items": {"anyOf": [{"$ref": "#"}, {"$ref": "#/items"}]}, "minItems": 1},
        {"type": "object", "required": ["x"], "additionalProperties": {"$ref": "#"}},
    ],
)
def test_a_schema_that_needs_itself_is_refused(schema: Any) -> None:
    with pytest.raises(UsageError, match=r"'\$ref'.* needs itself"):
        from_schema(schema)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (NEXT, '{"v": null, "next": {"v": null}}'),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": {"const": 1}}},
            "1",
        ),
        ({"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}]}, "[[null], null]"),
        ({"type": "array", "items": {"$ref": "#"}}, "[[], [[]]]"),
        ({"type": "array", "prefixItems": [{"const": 1}], "items": {"$ref": "#"}, "minItems": 1}, "[1, [1]]"),
        ({"$ref": "#/$defs/a~1b/anyOf/0", "$defs": {"a/b": {"anyOf": [{"const": 1}]}}}, "1"),
    ],
)
def test_one_that_may_have_itself_within_is_taken(schema: Any, text: str) -> None:
    assert allows(lettered().held(from_schema(schema)), text)


def test_what_takes_long_to_follow_is_left_to_the_end_of_the_answer() -> None:
    names = [f"n{number}" for number in range(900)]
    defs = {name: {"$ref": f"#/$defs/{after}"} for name, after in zip(names, [*names[1:], names[0]], strict=True)}
    with pytest.raises(UsageError, match="needs itself"):
        require_end({"$ref": "#/$defs/n0", "$defs": dict(list(defs.items())[:40] + [("n40", {"$ref": "#/$defs/n0"})])})
    require_end({"$ref": "#/$defs/n0", "$defs": {**defs, "x": {"allOf": [{"$ref": f"#/$defs/{n}"} for n in names]}}})


def test_names_by_reference_below_another_id_are_left_to_the_engine() -> None:
    inner = {"$id": "http://inner.example/", "propertyNames": {"$ref": "#/$defs/K"}, "$defs": {"K": {"enum": ["y"]}}}
    made = exact({"items": inner, "$defs": {"K": {"enum": ["x"]}}})
    assert made["items"]["propertyNames"] == {"$ref": "#/$defs/K"}


def test_options_of_a_schema_stay() -> None:
    assert exact({"x-guidance": {"item_separator": ","}})["x-guidance"]["item_separator"] == ","
    assert exact({"x-guidance": {"json_allowed_escapes": "n"}})["x-guidance"] == {"json_allowed_escapes": "n"}


def test_a_schema_and_its_text_are_one_constraint() -> None:
    schema = {"properties": {"day": {"format": "date"}}, "additionalProperties": False}
    assert from_schema(schema) == from_schema(json.dumps(schema))


def test_only_schemas_are_rebuilt() -> None:
    """Names of members and values that are data are not taken for keywords."""
    seen: list[Any] = []

    def look(below: Any) -> Any:
        seen.append(below)
        return below

    schema = {
        "const": {"type": 1},
        "default": {"type": 2},
        "properties": {"const": {"type": "null"}},
        "items": True,
        "anyOf": [{"title": "x"}],
        "required": ["const"],
        "minimum": 3,
    }
    assert rebuilt(schema, look) == schema
    assert seen == [{"type": "null"}, True, {"title": "x"}]
