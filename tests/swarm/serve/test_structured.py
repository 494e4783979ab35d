"""Answers of a given form: every spelling of the request, what is refused, and what the clients make of the answers."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from swarm.model.constraint import MAX_CHARS
from swarm.serve.body import read
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError
from swarm.serve.messages import read_tools
from swarm.serve.parse import parse_chat_untrusted, parse_completion_untrusted
from swarm.serve.requests import ChatBody
from swarm.serve.structured import Structure, read_structure
from tests.swarm.model.lettered import allows, lettered
from tests.swarm.serve.conftest import Serve
from tests.swarm.serve.tiny import TinyManifest

HELLO: list[Any] = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"where": {"$ref": "#/$defs/Where"}},
                "required": ["where"],
                "additionalProperties": False,
                "$defs": {"Where": {"enum": ["up", "down"]}},
            },
        },
    },
    {"type": "function", "function": {"name": "stay"}},
]


def structure(**fields: Any) -> Structure | None:
    asked = read(ChatBody, {"messages": HELLO, **({"tools": TOOLS} if "tool_choice" in fields else {}), **fields})
    return read_structure(asked, asked.tool_choice, read_tools(asked))


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            "json_schema",
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, "json_schema", "response_format.schema"),
        ({"json_schema": SCHEMA}, "json_schema", "json_schema"),
        ({"guided_json": json.dumps(SCHEMA)}, "json_schema", "guided_json"),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", "structured_outputs.json"),
        ({"structured_outputs": {"json_object": True}}, "json_schema", "structured_outputs.json_object"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "lark", "structured_outputs.choice"),
        ({"regex": "a+"}, "regex", "regex"),
        ({"guided_regex": "a+"}, "regex", "guided_regex"),
        ({"guided_choice": ["yes", "no"]}, "lark", "guided_choice"),
        ({"grammar": 'root ::= "a" | "b"'}, "lark", "grammar"),
        ({"guided_grammar": 'start: "a"'}, "lark", "guided_grammar"),
        ({"ebnf": 'root ::= "a"'}, "lark", "ebnf"),
        ({"tool_choice": "required"}, "json_schema", "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "stay"}}}, "json_schema", "tool_choice"),
    ],
)
def test_every_spelling_is_one_constraint(fields: dict[str, Any], kind: str, param: str) -> None:
    found = structure(**fields)
    assert found is not None and (found.constraint.kind, found.param) == (kind, param)


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"tool_choice": "auto"}])
def test_no_structure_is_none(fields: dict[str, Any]) -> None:
    assert structure(**fields) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"regex": "a", "guided_json": SCHEMA}, "regex"),
        ({"regex": ["a"]}, "regex"),
        ({"regex": ""}, "regex"),
        ({"regex": "x" * (MAX_CHARS + 1)}, "regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": [1]}, "guided_choice"),
        ({"guided_choice": ["x"] * 1025}, "guided_choice"),
        ({"guided_json": [1]}, "guided_json"),
        ({"grammar": "root ::= " + "(" * 5000}, "grammar"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"guided_whitespace_pattern": " *"}, "guided_whitespace_pattern"),
        ({"tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice.function.name"),
        ({"tool_choice": "required", "regex": "a"}, "regex"),
    ],
)
def test_what_is_no_constraint_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        structure(**fields)
    assert caught.value.status == 400 and caught.value.param == param and param.split(".")[0] in caught.value.message


def test_requests_carry_it_and_need_tools_to_call_one() -> None:
    config = GatewayConfig()
    assert parse_chat_untrusted({"messages": HELLO, "regex": "a"}, config).wanted.structure is not None
    assert parse_completion_untrusted({"prompt": "x", "guided_choice": ["a"]}, config).wanted.structure is not None
    with pytest.raises(ApiError, match="needs 'tools'"):
        parse_chat_untrusted({"messages": HELLO, "tool_choice": "required"}, config)


def test_a_call_and_an_answer_both_find_their_definitions() -> None:
    answer = {"type": "array", "items": {"$ref": "#/$defs/One"}, "$defs": {"One": {"const": 1}}}
    fields = {"tool_choice": "auto", "guided_json": answer}
    found = structure(**fields)
    assert found is not None
    schema = json.loads(found.constraint.text)
    for right in ([1, 1], {"name": "look", "arguments": {"where": "up"}}, {"name": "stay", "arguments": {}}):
        jsonschema.validate(right, schema)
    for wrong in ([2], {"name": "look", "arguments": {"where": "left"}}, {"name": "go", "arguments": {}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_tools_keep_what_they_refer_to() -> None:
    """By pointers, anchors and names of their own, also in members that are called like a keyword."""
    properties = {
        "const": {"$ref": "#/$defs/one"},
        "default": {"$ref": "#two"},
        "items": {"$ref": "#/properties/const"},
        "inner": {"$id": "http://inner.example/", "$ref": "#/$defs/three", "$defs": {"three": {"const": 3}}},
    }
    defs = {"one": {"const": 1}, "two": {"$anchor": "two", "const": 2}}
    parameters = {"type": "object", "properties": properties, "required": list(properties), "$defs": defs}
    tools = [{"type": "function", "function": {"name": "look", "parameters": parameters}}]
    found = structure(tools=tools, tool_choice="required")
    assert found is not None
    held = lettered().held(found.constraint)
    assert allows(held, '{"name": "look", "arguments": {"const": 1, "default": 2, "items": 1, "inner": 3}}')
    assert not allows(held, '{"name": "look", "arguments": {"const": 2, "default": 2, "items": 1, "inner": 3}}')


class Person(BaseModel, extra="forbid"):
    name: str = Field(pattern="^[A-Z][a-z]{1,6}$")
    age: int = Field(ge=0, le=130)
    mood: Literal["good", "bad"]


async def test_openai_parses_what_comes(serve: Serve) -> None:
    async with serve() as served:
        for temperature in (0.0, 1.5):
            told = await served.openai.chat.completions.parse(
                model=served.model, messages=HELLO, response_format=Person, temperature=temperature, seed=3
            )
            assert told.choices[0].message.parsed is not None and told.choices[0].finish_reason == "stop"
        stream = await served.openai.chat.completions.create(
            model=served.model, messages=HELLO, stream=True, max_tokens=150, temperature=0,
            response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": Person.model_json_schema()}},
        )  # fmt: skip
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        Person.model_validate_json(text)


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "b",
        "parameters": {
            "type": "object",
            "properties": {"x": {"enum": [1, 2]}},
            "required": ["x"],
            "additionalProperties": False,
        },
    },
}


async def test_a_tool_that_must_be_called_is_called(serve: Serve) -> None:
    async with serve() as served:
        served.backend.manifest = TinyManifest(context=1024)
        small: list[Any] = [{"type": "function", "function": {"name": "a"}}, TOOL]
        for choice, names in (("required", {"a", "b"}), (_named("b"), {"b"})):
            told = await served.openai.chat.completions.create(
                model=served.model, messages=HELLO, tools=small if names != {"b"} else [TOOL], tool_choice=choice,
                max_tokens=80, temperature=1.0,
                seed=1,
            )  # fmt: skip
            (call,) = told.choices[0].message.tool_calls or []
            assert call.type == "function" and call.function.name in names
            assert told.choices[0].finish_reason == "tool_calls" and not told.choices[0].message.content
            assert call.function.name == "b" or call.function.arguments == "{}"
            if call.function.name == "b":
                assert json.loads(call.function.arguments)["x"] in (1, 2)


def _named(name: str) -> Any:
    return {"type": "function", "function": {"name": name}}


async def test_patterns_choices_and_grammars(serve: Serve) -> None:
    grammar = 'root ::= item ("," item)*\nitem ::= [0-9]{2}'
    asked: list[tuple[dict[str, Any], str]] = [
        ({"regex": "[a-c]{3}[0-9]"}, "[a-c]{3}[0-9]"),
        ({"guided_choice": ['say "no"', "yes"]}, '(say "no"|yes)'),
        ({"grammar": grammar}, r"\d\d(,\d\d)*"),
    ]
    async with serve() as served:
        for extra, pattern in asked:
            told = await served.openai.completions.create(
                model=served.model, prompt="x", max_tokens=60, temperature=1, seed=2, extra_body=extra
            )
            text = told.choices[0].text
            assert re.fullmatch(pattern, text) or told.choices[0].finish_reason == "length", (extra, text)


async def test_logprobs_are_of_what_is_allowed(serve: Serve) -> None:
    async with serve() as served:
        told = await served.openai.chat.completions.create(
            model=served.model, messages=HELLO, logprobs=True, top_logprobs=3, max_tokens=20,
            extra_body={"guided_choice": ["aa", "ab"]},
        )  # fmt: skip
        logprobs = told.choices[0].logprobs
        assert logprobs is not None and logprobs.content is not None
        first, second = logprobs.content[:2]
        assert first.token == "a" and first.logprob == 0.0 and first.top_logprobs[1].logprob == -9999.0
        chances = [2.718281828**entry.logprob for entry in second.top_logprobs]
        assert sum(chances) == pytest.approx(1.0, abs=1e-4) and chances[2] == 0.0


def deep(levels: int) -> Any:
    return {"type": "array", "items": deep(levels - 1)} if levels else {"type": "string"}


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"guided_json": {"not": {"pattern": "x"}}}, "not"),
    ({"guided_json": {"anyOf": [{}], "unevaluatedProperties": False}}, "unevaluatedProperties"),
    ({"guided_json": {"$ref": "http://example.com/a"}}, "example.com"),
    ({"guided_json": {"type": "objct"}}, "objct"),
    ({"guided_json": deep(140)}, "recursion"),
    ({"guided_json": deep(900)}, "too deep"),
    ({"guided_json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}}, "$ref"),
    ({"guided_json": {"enum": [f"value {i}" for i in range(100_000)]}}, "at most 32768 bytes"),
    ({"guided_json": {"maxItems": 10**30}}, "maxItems"),
    ({"guided_json": {"allOf": [{"properties": {f"p{i}": {}}} for i in range(500)]}}, "too large"),
    ({"guided_choice": ["a"] * 100_000}, "at most 1024"),
    ({"regex": "((((a{1,100}){1,100}){1,100}){1,100})"}, "too much to follow"),
    ({"grammar": "root ::= root"}, "without an end"),
    ({"grammar": "root ::= " + "(" * 5000}, "too deep"),
    ({"guided_json": {"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(60)]}}, "more than"),
    ({"regex": "(a"}, "regex"),
    ({"regex": "(?=a)b"}, "look"),
    ({"grammar": "start: missing"}, "missing"),
]


async def test_what_cannot_be_compiled_is_a_400_within_a_second(serve: Serve) -> None:
    """The others' answers go on meanwhile. Ten times the limit of the compiler is granted to a busy machine."""
    async with serve() as served:
        await served.openai.completions.create(  # starts the process
            model=served.model, prompt="x", max_tokens=2, extra_body={"regex": "a"}
        )
        free = asyncio.create_task(
            served.openai.completions.create(
                model=served.model, prompt="x", max_tokens=100, extra_body={"ignore_eos": True}
            )
        )
        for extra, said in HOSTILE:
            began = time.monotonic()
            with pytest.raises(openai.BadRequestError) as caught:
                await served.openai.completions.create(model=served.model, prompt="x", max_tokens=5, extra_body=extra)
            assert time.monotonic() - began < 10, extra
            assert caught.value.param == next(iter(extra)) and said in caught.value.message, caught.value.message
        assert (await free).usage is not None
