"""Requests of the shapes that coding programs send: Codex to /v1/responses, Claude Code to /v1/messages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.swarm.serve.conftest import Serve, Served
from tests.swarm.serve.tiny import TEMPLATE, TinyBackend, TinyManifest, tiny_tokenizer

CALLS = TEMPLATE.replace(
    "<|im_end|>\n{% endfor %}",
    "{% for call in message.tool_calls or [] %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}",
)
SHELL: Any = {"type": "object", "properties": {"command": {"type": "array", "items": {"type": "string"}}}}


@pytest.fixture
def backend(tmp_path: Any) -> TinyBackend:
    return TinyBackend(tmp_path, replace(TinyManifest(), context=8192), tiny_tokenizer(CALLS))


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    async with serve() as running:
        yield running


def prompt_of(served: Served) -> str:
    return str(served.backend.tokenizer.decode(served.backend.requests[-1].prompt_ids))


async def sent(served: Served, path: str, body: Mapping[str, Any], **headers: str) -> tuple[str, list[Any]]:
    """The names in x-ignored-fields, and the data of a stream's events."""
    async with served.http.post(path, json=body, headers=headers) as answer:
        text = await answer.text()
        assert answer.status == 200, text
        events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        return answer.headers.get("x-ignored-fields", ""), [json.loads(event) for event in events if event != "[DONE]"]


def codex(**more: Any) -> dict[str, Any]:
    """A turn in the middle of a session."""
    words = [{"type": "input_text", "text": "list the files"}]
    return {
        "model": "tiny-random",
        "instructions": "You are a coding agent.",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Sandboxed."}]},
            {"type": "message", "role": "user", "content": words},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "s"}], "content": None,
             "encrypted_content": "gAAA"},
            {"type": "function_call", "name": "shell", "arguments": '{"command": ["ls"', "call_id": "call_1"},
            {"type": "function_call_output", "call_id": "call_1", "output": "broken arguments"},
            {"type": "local_shell_call", "call_id": "call_2", "status": "completed",
             "action": {"type": "exec", "command": ["ls", "-l"]}},
            {"type": "local_shell_call_output", "call_id": "call_2", "output": "a.py"},
            {"type": "custom_tool_call", "call_id": "call_3", "name": "apply_patch", "input": "*** Begin Patch"},
            {"type": "custom_tool_call_output", "call_id": "call_3", "output": "Done"},
            {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "q"}},
            {"type": "ghost_snapshot", "ghost_commit": {"id": "x"}},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "One file."}]},
            {"role": "user", "content": "and now?"},
        ],
        "tools": [
            {"type": "function", "name": "shell", "description": "d", "strict": False, "parameters": SHELL},
            {"type": "local_shell"},
            {"type": "web_search", "external_web_access": True},
            {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark"}},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0197-abc",
        "text": {"verbosity": "medium"},
        "client_metadata": {"x": "y"},
        "max_output_tokens": 80,
        **more,
    }  # fmt: skip


async def test_codex_goes_on_and_is_told_what_is_left_out(served: Served) -> None:
    served.backend.script = '<tool_call>{"name": "shell", "arguments": {"command": ["pwd"]}}</tool_call>'
    ignored, events = await sent(served, "/v1/responses", codex(), originator="codex_cli_rs")
    assert ignored.split(", ") == [
        "include", "tools[1].local_shell", "tools[2].web_search", "tools[3].custom", "input[9].web_search_call",
        "input[10].ghost_snapshot",
    ]  # fmt: skip
    final = events[-1]["response"]
    assert final["status"] == "completed" and final["output"][0]["arguments"] == '{"command": ["pwd"]}'
    prompt = prompt_of(served)
    for part in (
        "You are a coding agent.", "Sandboxed.", '<call>shell {"raw_arguments": ', "broken arguments",
        '<call>local_shell {"type": "exec", "command": ["ls", "-l"]}', "a.py",
        '<call>apply_patch {"input": "*** Begin Patch"}', "Done", "One file.", "and now?",
    ):  # fmt: skip
        assert part in prompt
    assert "gAAA" not in prompt and '"shell"' in prompt and "web_search" not in prompt


async def test_allowed_tools_are_the_only_ones(served: Served) -> None:
    tools = [{"type": "function", "name": name, "parameters": SHELL} for name in ("shell", "plan")]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "plan"}]}
    _, events = await sent(served, "/v1/responses", codex(tools=tools, tool_choice=allowed))
    assert events[-1]["response"]["output"][0]["name"] == "plan" and '"shell"' not in prompt_of(served)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"conversation": "conv_1"}, "conversation"),
    ],
)
async def test_what_cannot_be_left_out_is_refused(served: Served, body: dict[str, Any], says: str) -> None:
    async with served.http.post("/v1/responses", json=codex(**body)) as answer:
        error = (await answer.json())["error"]
        assert answer.status == 400 and error["param"].startswith(says), error


def claude_code(**more: Any) -> dict[str, Any]:
    """A turn in the middle of a session."""
    kept = {"cache_control": {"type": "ephemeral"}}
    return {
        "model": "tiny-random",
        "max_tokens": 32_000,
        "stream": True,
        "system": [
            {"type": "text", "text": "You are a coding agent.", **kept},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "list the files", **kept}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
                {"type": "redacted_thinking", "data": "xx"},
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": ["ls"]}},
                {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "q"}},
                {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True, **kept,
                 "content": [{"type": "text", "text": "no such"}, {"type": "text", "text": "command"}]},
                {"type": "text", "text": "and now?", **kept},
            ]},
        ],
        "tools": [
            {"name": "Bash", "description": "d", "input_schema": {**SHELL, "$schema": "x"}, **kept},
            {"name": "mcp__" + "n" * 80, "input_schema": {"type": "object"}, "defer_loading": True},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        ],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "metadata": {"user_id": "user_x"},
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        **more,
    }  # fmt: skip


BETA = {"anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14", "anthropic-version": "2023-06-01"}


async def test_claude_code_goes_on_and_is_told_what_is_left_out(served: Served) -> None:
    served.backend.script = '<tool_call>{"name": "Bash", "arguments": {"command": ["pwd"]}}</tool_call>'
    ignored, events = await sent(served, "/v1/messages?beta=true", claude_code(), **BETA)
    assert ignored.split(", ") == [
        "context_management", "tools[2].web_search_20250305", "messages[1].content[4].server_tool_use",
        "messages[1].content[5].web_search_tool_result",
    ]  # fmt: skip
    assert [event["delta"]["stop_reason"] for event in events if event["type"] == "message_delta"] == ["tool_use"]
    prompt = prompt_of(served)
    for part in ("You are a coding agent.\n\nBe brief.", "Let me look.", '<call>Bash {"command": ["ls"]}',
                 "no such\n\ncommand", "and now?", "mcp__nnn"):  # fmt: skip
        assert part in prompt
    asked = served.backend.requests[-1]
    assert asked.max_tokens == 8192 - len(asked.prompt_ids)
    body = claude_code()
    for name in ("max_tokens", "stream"):
        del body[name]
    async with served.http.post("/v1/messages/count_tokens?beta=true", json=body, headers=BETA) as answer:
        assert (await answer.json())["input_tokens"] == len(asked.prompt_ids)
        assert answer.headers["x-ignored-fields"] == ignored


@pytest.mark.parametrize(
    "thinking", [{"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}]
)
async def test_claude_codes_other_calls(served: Served, thinking: dict[str, Any]) -> None:
    """A short question beside the session, without tools and with one character of answer to begin with."""
    messages = [{"role": "user", "content": "topic?"}, {"role": "assistant", "content": "{"}]
    body = {"model": "tiny-random", "max_tokens": 4, "messages": messages, "thinking": thinking, "temperature": 0}
    async with served.http.post("/v1/messages", json={**body, "system": "Sum up.", "metadata": {}}) as answer:
        assert (await answer.json())["role"] == "assistant" and answer.status == 200


@pytest.mark.parametrize("where", ["output_config", "output_format"])
async def test_an_answer_of_the_form_that_is_asked_for(served: Served, where: str) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "schema": schema}
    body = {"max_tokens": 40, "messages": [{"role": "user", "content": "hi"}]}
    wanted = {where: {"format": form, "effort": "low"} if where == "output_config" else form}
    async with served.http.post("/v1/messages", json={**body, **wanted}) as answer:
        told = await answer.json()
        assert json.loads(told["content"][0]["text"])["a"] in (1, 2), told
    async with served.http.post("/v1/messages", json={**body, "output_config": {"format": {"type": "xml"}}}) as answer:
        assert answer.status == 400 and "json_schema" in (await answer.json())["error"]["message"]


async def test_a_strict_gateway_refuses_fields_and_leaves_out_the_rest(serve: Serve) -> None:
    async with serve(strict=True) as served:
        async with served.http.post("/v1/messages", json=claude_code()) as answer:
            assert answer.status == 400 and "context_management" in (await answer.json())["error"]["message"]
        async with served.http.post("/v1/responses", json=codex(stream=False)) as answer:
            assert answer.status == 200 and "include" in answer.headers["x-ignored-fields"]
