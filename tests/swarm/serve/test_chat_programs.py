"""Requests as chat pages and editors send them: Open WebUI 0.12, Continue, LibreChat, Zed, Cline."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from tests.swarm.serve.conftest import Serve, Served
from tests.swarm.serve.test_programs import CALLS, prompt_of, sent
from tests.swarm.serve.tiny import TinyBackend, TinyManifest, tiny_tokenizer

MODEL = "tiny-random"
LOOK = {"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}
ASK = {"role": "user", "content": "Name a river."}


@pytest.fixture
def backend(tmp_path: Any) -> TinyBackend:
    return TinyBackend(tmp_path, replace(TinyManifest(), context=8192), tiny_tokenizer(CALLS))


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    async with serve() as running:
        running.backend.script = "The Scheldt."
        yield running


async def told(served: Served, method: str, path: str, **body: Any) -> Any:
    async with served.http.request(method, path, json=body or None) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json(content_type=None)


def content(events: list[Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


async def test_open_webui_as_openais_client(served: Served) -> None:
    """The first turn of a chat, with what its page sends along where nothing takes it out."""
    listed = await told(served, "GET", "/v1/models")
    assert [model["id"] for model in listed["data"]] == [MODEL] and listed["object"] == "list"
    body = {
        "stream": True,
        "model": MODEL,
        "messages": [{"role": "system", "content": "Be brief."}, ASK],
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
        "max_tokens": 50,
        "frequency_penalty": 0.0,
        "features": {"web_search": False, "code_interpreter": False, "image_generation": False},
        "variables": {"{{USER_NAME}}": "Ann"},
        "files": [],
        "session_id": "s1",
        "chat_id": "c1",
        "id": "m1",
        "background_tasks": {"title_generation": True, "tags_generation": True, "follow_up_generation": True},
    }
    headers = {"X-OpenWebUI-User-Name": "Ann", "X-OpenWebUI-User-Id": "u1", "X-OpenWebUI-Chat-Id": "c1"}
    ignored, events = await sent(served, "/v1/chat/completions", body, **headers)
    assert content(events) == "The Scheldt." and events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 12
    assert set(ignored.split(", ")) == {
        "features", "variables", "files", "session_id", "chat_id", "id", "background_tasks",
    }  # fmt: skip


async def test_open_webuis_tasks_beside_a_chat(served: Served) -> None:
    served.backend.script = '{"title": "A river"}'
    for limit in ({"max_completion_tokens": 1000}, {"max_tokens": 1000}, {}):
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "### Task: a title"}], "stream": False}
        answer = await told(served, "POST", "/v1/chat/completions", **asked, **limit)
        assert json.loads(answer["choices"][0]["message"]["content"]) == {"title": "A river"}
        assert answer["choices"][0]["finish_reason"] == "stop" and answer["usage"]["total_tokens"] > 0


async def test_open_webui_goes_on_after_its_tools_and_in_mid_answer(served: Served) -> None:
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    said = [ASK, {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "Rain."}]  # fmt: skip
    body = {"model": MODEL, "messages": said, "tools": [LOOK], "stream": True, "max_tokens": 50}
    _, events = await sent(served, "/v1/chat/completions", body)
    assert content(events) == "The Scheldt." and "Rain." in prompt_of(served) and "<call>look" in prompt_of(served)
    begun = {"role": "assistant", "content": "It is the"}
    body = {"model": MODEL, "messages": [ASK, begun], "stream": True, "max_tokens": 50}
    _, events = await sent(
        served, "/v1/chat/completions", {**body, "continue_final_message": True, "add_generation_prompt": False}
    )
    assert prompt_of(served).endswith("It is the") and content(events) == "The Scheldt."


async def test_open_webui_as_ollamas_client(served: Served) -> None:
    assert (await told(served, "GET", "/api/version"))["version"].count(".") == 2
    (model,) = (await told(served, "GET", "/api/tags"))["models"]
    assert model["model"] == model["name"] == MODEL and model["details"]["parent_model"] == ""
    (loaded,) = (await told(served, "GET", "/api/ps"))["models"]
    assert datetime.fromisoformat(loaded["expires_at"]).tzinfo is not None
    assert "completion" in (await told(served, "POST", "/api/show", model=f"{MODEL}:latest"))["capabilities"]
    call = {"index": 0, "id": "call_1", "function": {"name": "look", "arguments": {"where": "Ghent"}}}
    body = {
        "model": f"{MODEL}:latest",
        "messages": [
            {"role": "user", "content": "Name a river."},
            {"role": "assistant", "thinking": "Hm.", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "Rain.", "tool_call_id": "call_1"},
        ],
        "stream": True,
        "tools": [LOOK],
        "options": {"temperature": 0.7, "num_ctx": 4096, "repeat_last_n": 64, "stop": ["\n\n"], "num_predict": 40},
        "think": False,
        "metadata": {"user_id": "u1", "chat_id": "c1", "features": {}, "files": None, "variables": {}},
        "keep_alive": "5m",
    }
    async with served.http.post("/api/chat", json=body) as answer:
        assert answer.status == 200, await answer.text()
        lines = [json.loads(line) for line in (await answer.text()).splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == "The Scheldt."
    last = lines[-1]
    assert last["done"] and last["done_reason"] == "stop" and last["eval_count"] == 12 and last["prompt_eval_count"] > 0
    assert not any(line["done"] for line in lines[:-1])
    for seconds in (0, -1):
        asked = {"model": MODEL, "prompt": "", "keep_alive": seconds}
        assert (await told(served, "POST", "/api/generate", **asked))["done"]


CONTINUES_STOPS = [
    *("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>"),
    *("<|file_sep|>", "<|im_start|>", "<|im_end|>", "/src/", "#- coding: utf-8", "```", "\r\n\r\n", "\n\n"),
    *("\nfunction", "\nclass", "\nmodule", "\nexport", "\nimport"),
]


async def test_continue_chats_edits_and_completes(served: Served) -> None:
    chat = {
        "model": MODEL, "messages": [{"role": "user", "content": [{"type": "text", "text": "Rename it."}]}],
        "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 60, "temperature": 0.0, "top_p": 1,
        "tools": [LOOK], "tool_choice": "auto", "parallel_tool_calls": False,
        "prediction": {"type": "content", "content": "a = 1\n"},
    }  # fmt: skip
    ignored, events = await sent(served, "/v1/chat/completions", chat)
    assert content(events) == "The Scheldt." and ignored == ""
    served.backend.script = "a + b\nexport default add"
    text = {"model": MODEL, "prompt": "<|fim_prefix|>return <|fim_suffix|>\n}<|fim_middle|>", "stream": True,
            "max_tokens": 60, "temperature": 0.01, "stop": CONTINUES_STOPS}  # fmt: skip
    _, events = await sent(served, "/v1/completions", text)
    assert "".join(event["choices"][0]["text"] for event in events) == "a + b"
    raw = {"model": MODEL, "prompt": "return ", "raw": True, "stream": True, "keep_alive": 1800,
           "options": {"num_predict": 60, "num_ctx": 8192, "temperature": 0.01, "stop": CONTINUES_STOPS}}  # fmt: skip
    async with served.http.post("/api/generate", json=raw) as answer:
        lines = [json.loads(line) for line in (await answer.text()).splitlines()]
    assert "".join(line["response"] for line in lines) == "a + b" and prompt_of(served) == "return "
    shown = await told(served, "POST", "/api/show", name=MODEL)
    assert isinstance(shown["template"], str) and isinstance(shown["parameters"], str)


async def test_librechat_chats_and_asks_for_a_title(served: Served) -> None:
    body = {
        "model": MODEL, "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": [
            {"type": "text", "text": "Name a river."}]}], "user": "65f0c", "stream": True,
        "stream_options": {"include_usage": True}, "temperature": 1, "top_p": 1, "presence_penalty": 0,
        "frequency_penalty": 0, "max_tokens": 50, "safe_prompt": True,
    }  # fmt: skip
    ignored, events = await sent(served, "/v1/chat/completions", body)
    assert content(events) == "The Scheldt." and ignored == "safe_prompt" and events[-1]["usage"]["prompt_tokens"] > 0
    # Of its title it asks for a call, or for text with a few tokens.
    served.backend.script = None
    form = {"type": "object", "properties": {"title": {"enum": ["Rivers"]}}, "required": ["title"]}
    titled = {**LOOK, "function": {"name": "title", "parameters": {**form, "additionalProperties": False}}}
    choice = {"type": "function", "function": {"name": "title"}}
    answer = await told(
        served, "POST", "/v1/chat/completions", model=MODEL, messages=[ASK], tools=[titled], tool_choice=choice
    )
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"title": "Rivers"}
    served.backend.script = "The Scheldt."
    short = {"temperature": 0.2, "presence_penalty": 0, "frequency_penalty": 0, "max_tokens": 16}
    answer = await told(served, "POST", "/v1/chat/completions", model=MODEL, messages=[ASK], **short)
    assert answer["choices"][0]["message"]["content"] == "The Scheldt."


async def test_zed_and_cline(served: Served) -> None:
    words = [{"type": "text", "text": "<task>"}, {"type": "text", "text": "Name a river."}]
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    zed = {
        "model": MODEL, "stream": True, "stop": [], "temperature": 1.0, "parallel_tool_calls": False, "tools": [LOOK],
        "max_completion_tokens": 50, "stream_options": {"include_usage": True}, "prompt_cache_key": "thread",
        "messages": [{"role": "user", "content": words}, {"role": "assistant", "content": None, "tool_calls": [call]},
                     {"role": "tool", "content": [{"type": "text", "text": "Rain."}], "tool_call_id": "c"}],
    }  # fmt: skip
    ignored, events = await sent(served, "/v1/chat/completions", zed)
    assert content(events) == "The Scheldt." and ignored == "" and "Rain." in prompt_of(served)
    cline = {
        "model": MODEL, "stream": True, "temperature": 0, "stream_options": {"include_usage": True}, "max_tokens": 50,
        "messages": [{"role": "system", "content": "You are Cline."}, {"role": "user", "content": words},
                     {"role": "user", "content": [{"type": "text", "text": "<environment_details>"}]}],
    }  # fmt: skip
    ignored, events = await sent(served, "/v1/chat/completions", cline)
    assert content(events) == "The Scheldt." and ignored == ""


async def test_a_container_may_call_its_host_by_name_where_that_is_allowed(serve: Serve) -> None:
    for allowed, status in (((), 403), (("host.docker.internal",), 200)):
        async with serve(allow_hosts=allowed) as served:
            headers = {"Host": "host.docker.internal:8080"}
            async with served.http.post("/generate", json={"prompt": "a", "max_tokens": 1}, headers=headers) as answer:
                assert answer.status == status
