"""One form of an answer in the words of every API: the same constraint, and refusals that name the client's field."""

from __future__ import annotations

from typing import Any

import pytest

from swarm.model.grammars import from_choices, from_grammar, from_schema
from tests.swarm.serve.conftest import Serve

SAID: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
OLLAMA = {"messages": SAID["messages"], "stream": False, "options": {"num_predict": 4}}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
BAD = {"type": "object", "properties": {"a": {"not": {"pattern": "x"}}}}
FORM, HELD = {"type": "json_schema", "schema": SCHEMA}, from_schema(SCHEMA)
GRAMMAR = 'root ::= "a" | "b"'
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SPELLINGS: list[tuple[str, dict[str, Any], Any]] = [
    (CHAT, {"response_format": {"type": "json_object"}}, from_schema({"type": "object"})),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"strict": True, "schema": SCHEMA}}}, HELD),
    (CHAT, {"response_format": FORM}, HELD),
    (CHAT, {"response_format": {"type": "json_object", "schema": SCHEMA}}, HELD),
    (CHAT, {"response_format": {"type": "grammar", "grammar": GRAMMAR}}, from_grammar(GRAMMAR)),
    (CHAT, {"json_schema": SCHEMA}, HELD),
    (CHAT, {"guided_json": SCHEMA}, HELD),
    (CHAT, {"guided_regex": "a+"}, "a+"),
    (CHAT, {"guided_choice": ["a", "b"]}, from_choices(["a", "b"])),
    (CHAT, {"guided_grammar": 'start: "a" | "b"'}, from_grammar('start: "a" | "b"')),
    (CHAT, {"structured_outputs": {"json": SCHEMA}}, HELD),
    (CHAT, {"structured_outputs": {"json": None, "regex": "a+", "json_object": False}}, "a+"),
    (CHAT, {"structured_outputs": {"choice": ["a", "b"]}}, from_choices(["a", "b"])),
    (CHAT, {"structured_outputs": {"grammar": GRAMMAR}}, from_grammar(GRAMMAR)),
    (CHAT, {"structured_outputs": {"json_object": True}}, from_schema({"type": "object"})),
    (CHAT, {"tools": [TOOL], "tool_choice": "required"}, None),
    (CHAT, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, None),
    (CHAT, {"regex": "a+"}, "a+"),
    (CHAT, {"ebnf": GRAMMAR}, from_grammar(GRAMMAR)),
    (TEXT, {"prompt": "x", "grammar": GRAMMAR}, from_grammar(GRAMMAR)),
    (TEXT, {"prompt": "x", "response_format": FORM}, HELD),
    ("/completion", {"prompt": "x", "json_schema": SCHEMA}, HELD),
    ("/completion", {"prompt": "x", "grammar": GRAMMAR}, from_grammar(GRAMMAR)),
    ("/api/chat", {**OLLAMA, "format": SCHEMA}, HELD),
    ("/api/chat", {**OLLAMA, "format": "json"}, from_schema({"type": "object"})),
    ("/api/generate", {"prompt": "x", "stream": False, "format": SCHEMA, "options": {"num_predict": 4}}, HELD),
    ("/v1/responses", {"input": "x", "max_output_tokens": 16, "text": {"format": {"name": "x", **FORM}}}, HELD),
    ("/v1/responses", {"input": "x", "max_output_tokens": 16, "text": {"format": {"type": "json_object"}}}, "object"),
    ("/v1/messages", {"output_config": {"format": FORM, "effort": "low"}}, HELD),
    ("/v1/messages", {"output_format": FORM}, HELD),
]


async def test_every_api_holds_answers_to_the_form_in_its_own_words(serve: Serve) -> None:
    async with serve() as served:
        for path, fields, wanted in SPELLINGS:
            body = {**(SAID if path in (CHAT, TEXT, "/v1/messages") else {}), **fields}
            if "prompt" in body:
                body.pop("messages", None)
            async with served.http.post(path, json=body) as answer:
                assert answer.status == 200, (path, fields, await answer.text())
            found = served.backend.requests[-1].sampling.constraint
            assert found is not None, (path, fields)
            if wanted is None:
                assert found.kind == "json_schema" and '"const":"f"' in found.text
            elif isinstance(wanted, str):
                assert wanted in found.text
            else:
                assert (found.kind, found.text) == (wanted.kind, wanted.text), (path, fields)


@pytest.mark.parametrize("schema", [BAD, {"type": "object", "minProperties": 7}, 3], ids=["compiled", "read", "type"])
async def test_refusals_name_the_field_as_the_client_spells_it(serve: Serve, schema: Any) -> None:
    form = {"type": "json_schema", "schema": schema}
    asked = [
        (CHAT, {**SAID, "response_format": form}, "response_format.schema"),
        ("/completion", {"prompt": "x", "json_schema": schema}, "json_schema"),
        ("/api/chat", {**OLLAMA, "format": schema}, "format"),
        ("/v1/responses", {"input": "x", "text": {"format": {"name": "x", **form}}}, "text.format"),
        ("/v1/messages", {**SAID, "output_config": {"format": form}}, "output_config.format"),
        ("/v1/messages", {**SAID, "output_format": form}, "output_format"),
    ]
    async with serve() as served:
        for path, body, field in asked:
            async with served.http.post(path, json=body) as answer:
                said = await answer.text()
                assert answer.status == 400 and f"'{field}'" in said, (path, said)
                assert "response_format" not in said or path == CHAT, (path, said)
                assert schema != BAD or "not" in said


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/api/chat", {**OLLAMA, "format": "xml"}, "'format' to be json"),
        ("/v1/messages", {**SAID, "output_format": FORM, "output_config": {"format": FORM}}, "found both"),
        ("/v1/messages", {**SAID, "output_format": {"type": "grammar"}}, "'output_format.type' to be json_schema"),
        ("/v1/messages", {**SAID, "output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        (CHAT, {**SAID, "structured_outputs": {"json": SCHEMA, "regex": "a"}}, "held to one thing"),
    ],
)
async def test_what_is_no_form_is_refused(serve: Serve, path: str, body: dict[str, Any], said: str) -> None:
    async with serve() as served, served.http.post(path, json=body) as answer:
        assert answer.status == 400 and said in await answer.text()
