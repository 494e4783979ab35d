"""Arrays of different items: what may come is exactly what a document may still come of, token by token."""

from __future__ import annotations

import json
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.base.errors import UsageError
from swarm.model.distinct_items import PLENTY, items_of
from swarm.model.distinct_places import apart
from swarm.model.grammars import from_schema
from swarm.model.held import Allowed, Matcher, Vocabulary
from tests.swarm.model.lettered import allows, lettered, merged

WORDS = [
    '["',
    '", "',
    '"]',
    '", "a", "',
    '["a", "a"',
    "[1, 1",
    ", 1, 1",
    "10",
    ", 0",
    '"a"',
    "aa",
    '""',
    "true, ",
    "00",
]


@cache
def vocabulary() -> Vocabulary:
    """Bytes, and words that end items and begin others."""
    made = merged(WORDS)
    return Vocabulary(made, len(made), [int(made.eos_token_id)])


def listing(items: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "uniqueItems": True, **more}


STRINGS = listing({"type": "string"})
NUMBERS = listing({"type": "integer"})
ALLOWED: list[tuple[Any, list[str], list[str]]] = [
    (STRINGS, ["[]", '["a", "b"]', '["a", "aa", ""]', r'["\"", "\\"]'], ['["a", "a"]', '["a", "b", "a"]', '["", ""]']),
    (NUMBERS, ["[0, 1, 10]", "[-1, 1, 0]", "[10, 1]"], ["[0, 0]", "[1, 1]", "[1, 10, 1]", "[0, -0]", "[-0, 0]"]),
    (
        listing({"type": "integer", "minimum": -1, "exclusiveMaximum": 12.5}, minItems=14),
        [f"[{', '.join(map(str, order))}]" for order in (range(-1, 13), range(12, -2, -1))],
        [f"[{', '.join(map(str, [*range(12), 1]))}]"],
    ),
    (listing({"enum": list("abcdefghij")}), ['["j", "a", "b"]'], ['["j", "j"]', '["k"]']),
    (
        listing({"anyOf": [{"type": "string", "maxLength": 1}, {"type": ["null", "boolean"]}, {"const": 3}]}),
        ['["a", null, true, false, 3, ""]', '["é", "è"]'],
        ["[null, null]", "[3, 3]", '["", ""]', '["é", "é"]'],
    ),
    (
        {
            "type": "object",
            "properties": {"tags": {"anyOf": [{"$ref": "#/$defs/tags"}, {"type": "null"}]}, "all": {"items": {}}},
            "additionalProperties": {"type": "array", "items": STRINGS, "maxItems": 2},
            "$defs": {"tags": STRINGS},
        },
        ['{"tags": ["a", "b"], "all": [1, 1], "x": [["a"], ["a"]]}', '{"tags": null}'],
        ['{"tags": ["a", "a"]}', '{"x": [["a", "a"]]}', '{"x": [["a"], ["b", "b"]]}'],
    ),
    ({"properties": {"uniqueItems": {"type": "null"}}}, ['{"uniqueItems": null}'], ['{"uniqueItems": 1}']),
    (
        {"type": "array", "prefixItems": [STRINGS, {"type": "string"}], "items": NUMBERS},
        ['[["a"], "a", [1], [1, 2]]'],
        ['[["a", "a"]]', '[[], "", [1, 1]]'],
    ),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), ALLOWED)
def test_items_are_different_ones(schema: Any, right: list[str], wrong: list[str]) -> None:
    held = lettered().held(from_schema(schema))
    assert [text for text in right if not allows(held, text)] == []
    assert [text for text in wrong if allows(held, text)] == []


SMALL = [
    listing({"type": "string", "maxLength": 1}, maxItems=40),
    listing({"type": "integer", "minimum": 0, "maximum": 11}),
    listing({"type": "integer", "minimum": -3, "maximum": 3}, minItems=7),
    listing({"type": "integer", "minimum": -2000}),
    listing({"enum": ["a", "aa", "ab", "b", "", "aab"]}, minItems=6),
    listing({"type": ["boolean", "null"]}, minItems=2),
    listing({"anyOf": [{"type": "string", "maxLength": 2}, {"type": "integer"}]}, maxItems=12),
    STRINGS,
    NUMBERS,
    {
        "type": "object",
        "properties": {"a": STRINGS, "b": NUMBERS},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
]


def spelt(tokens: list[int]) -> str:
    return b"".join(vocabulary().spelt().bytes[token] for token in tokens).decode()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SMALL), st.integers(0, 2**32))
def test_walks_that_want_what_is_there_already_end_in_documents(schema: Any, seed: int) -> None:
    """No walk comes to a place where nothing may follow, and what ends is valid."""
    random, held, tokens = Random(seed), vocabulary().held(from_schema(schema)), list[int]()
    liked = [token for token, text in enumerate(vocabulary().spelt().bytes) if set(text) <= set(b'[]{}", 01a:b')]
    end = vocabulary().ends[0]
    while len(tokens) < 120:
        allowed = held.after(tokens)
        may = np.flatnonzero(allowed.mask(vocabulary().size)).tolist()
        wanted = [token for token in may if token in liked] if random.random() < 0.9 else []
        token = random.choice(wanted or may)
        if token == end:
            text = spelt(tokens)
            value = json.loads(text)
            for items in value.values() if isinstance(value, dict) else [value]:
                assert len(items) == len({(type(item), item) for item in items}), text
            return
        tokens.append(token)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SMALL[:7]), st.integers(0, 2**32))
def test_a_mask_is_what_a_search_finds(schema: Any, seed: int) -> None:
    """Each token that the engine allows: it may come exactly if byte by byte (where nothing is forced) it may."""
    random, held, by_bytes = Random(seed), vocabulary().held(from_schema(schema)), lettered().held(from_schema(schema))
    tokens: list[int] = []
    size, end = vocabulary().size, vocabulary().ends[0]
    known = lettered().spelt().bytes
    number = {text: token for token, text in enumerate(known)}
    for _ in range(40):
        allowed = held.after(tokens)
        if allowed.forced < 0:
            engine = vocabulary().held(from_schema(without(schema)))
            assert engine._go_to(list(tokens))
            before = [number[bytes((byte,))] for byte in spelt(tokens).encode()] if valid(tokens) else None
            bits = np.flatnonzero(Allowed(-1, engine._matcher.compute_bitmask()).mask(size)).tolist()
            for token in bits if before is not None else ():
                if token != end:
                    text = vocabulary().spelt().bytes[token]
                    assert allowed.allows(token) == may_come(by_bytes, before, [number[bytes((b,))] for b in text]), (
                        text
                    )
        may = np.flatnonzero(allowed.mask(size)).tolist()
        tokens.append(random.choice(may))
        if tokens[-1] == end:
            return


def without(schema: Any) -> Any:
    return {key: value for key, value in schema.items() if key != "uniqueItems"}


def valid(tokens: list[int]) -> bool:
    try:
        spelt(tokens)
    except UnicodeDecodeError:
        return False
    return True


def may_come(held: Matcher, before: list[int], text: list[int]) -> bool:
    return all(held.after([*before, *text[:at]]).allows(byte) for at, byte in enumerate(text))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SMALL), st.integers(0, 2**32))
def test_what_is_allowed_does_not_depend_on_the_way_there(schema: Any, seed: int) -> None:
    random, constraint = Random(seed), from_schema(schema)
    one, texts = vocabulary().held(constraint), list[list[int]]()
    for _ in range(3):
        held, text = one.fresh(0), list[int]()
        for _ in range(25):
            text.append(random.choice(np.flatnonzero(held.after(text).mask(vocabulary().size)).tolist()))
        texts.append(text)
    asked = [text[:end] for text in texts for end in range(len(text) + 1)]
    random.shuffle(asked)
    for text in asked[:30]:
        assert one.after(text) == vocabulary().held(constraint).after(text)
        wrong = [*text, random.randrange(vocabulary().size), random.randrange(vocabulary().size)]
        assert one.after(wrong) == vocabulary().held(constraint).after(wrong)


@pytest.mark.parametrize(
    "schema",
    [
        {"uniqueItems": True},
        listing({}),
        listing({"type": "number"}),
        listing({"type": "string", "format": "uuid"}),
        listing({"type": "string", "pattern": "a"}),
        listing({"type": "array"}),
        listing({"type": "integer", "multipleOf": 2}),
        listing({"anyOf": [{"type": "string"}, {"enum": list("abcdefg")}]}),
        listing({"type": "boolean"}, minItems=3, maxItems=5),
        listing({"type": "integer", "minimum": 1, "maximum": 9}, minItems=10),
        {"anyOf": [STRINGS, {"type": "array", "items": {"type": "null"}}]},
        {"anyOf": [STRINGS, {"enum": [["a", "a"]]}]},
        {"allOf": [STRINGS, {"minItems": 2}]},
        {"anyOf": [{"properties": {"a": STRINGS}}, {"properties": {"b": {}}}]},
        {**STRINGS, "x-guidance": {"whitespace_flexible": True}},
        {"prefixItems": [{"type": "string"}], "uniqueItems": True},
    ],
)
def test_what_cannot_be_counted_is_refused_by_name(schema: Any) -> None:
    with pytest.raises(UsageError, match="uniqueItems"):
        lettered().held(from_schema(schema))


@given(st.integers(-300, 300), st.integers(0, 400), st.text("-0123456789", max_size=4))
def test_whole_numbers_are_counted_by_their_beginning(low: int, width: int, begun: str) -> None:
    items = items_of({"type": "integer", "minimum": low, "maximum": low + width}, {})
    assert items is not None
    counted = sum(str(number).startswith(begun) for number in range(low, low + width + 1))
    assert items.left(begun.encode()) == (int(low <= 0 <= low + width) if begun == "-0" else counted)


def test_strings_are_counted_by_their_beginning() -> None:
    two, any_ = items_of({"type": "string", "maxLength": 2}, {}), items_of({"type": "string"}, {})
    assert two is not None and any_ is not None
    counts = [two.left(text) for text in (b"", b'"', b'"a', b'"ab', b'"a\\', b'"a\\n', '"a\u00e9'.encode(), b'"a\xc3')]
    assert counts == [PLENTY, PLENTY, PLENTY, 1, 7, 1, 1, 64]
    assert any_.left(b'"abcdef') == PLENTY and any_.left(b"1") == 0


def test_schemas_that_take_long_to_read_are_refused() -> None:
    names = {f"n{number}": {"anyOf": [{"$ref": f"#/$defs/n{other}"} for other in range(40)]} for number in range(40)}
    wide = {"anyOf": [{"properties": {f"p{a}": {"type": "null"}}} for a in range(400)], "$defs": {"a": STRINGS}}
    assert apart(json.dumps({"$ref": "#/$defs/n0", "$defs": {**names, "u": STRINGS}}))[1] is None
    with pytest.raises(UsageError, match="steps"):
        apart(json.dumps({"properties": {"s": STRINGS, "a": wide}, "additionalProperties": False}))
