"""OpenAI's Responses API (/v1/responses), translated to a chat request.

Source: OpenAI's API reference of responses and their stream events, held by their Python client in the tests.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from aiohttp import web
from msgspec import to_builtins

from swarm.run.api import RunRequest, RunResult
from swarm.serve.backend import Backend
from swarm.serve.body import beyond, read
from swarm.serve.compat.bodies import (
    CallItem,
    CallOutputItem,
    CustomCallItem,
    ItemContent,
    MessageItem,
    ReasoningItem,
    ResponsesBody,
    ResponsesTool,
    ShellCallItem,
    ShellCallOutputItem,
)
from swarm.serve.compat.kept import KeptAnswers
from swarm.serve.compat.left_out import LeftOut, naming
from swarm.serve.compat.shapes import asked_by, given, said_of
from swarm.serve.completions import Completions
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError, bad_field
from swarm.serve.messages import joined_parts
from swarm.serve.parse import parse_chat_untrusted
from swarm.serve.stream import EventStream
from swarm.serve.voice import Event, Json, delta_of
from swarm.serve.web import REQUEST_ID, USER, read_json

_SAME = ("model", "temperature", "top_p", "stream", "user", "metadata", "service_tier", "parallel_tool_calls",
         "timings_per_token", "return_progress")  # fmt: skip
_ECHOED = ("instructions", "temperature", "top_p", "previous_response_id", "max_output_tokens")


class ResponsesViews:
    """The handlers, and the answers that `previous_response_id` may name."""

    def __init__(self, backend: Backend, config: GatewayConfig, completions: Completions, kept: KeptAnswers) -> None:
        self._backend, self._config, self._completions = backend, config, completions
        self._kept = kept

    async def get(self, request: web.Request) -> web.Response:
        found = self._kept.get(request.match_info["id"], request[USER])
        if found is None:
            raise _unknown(request.match_info["id"])
        return web.json_response(found.body)

    async def delete(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if not self._kept.drop(name, request[USER]):
            raise _unknown(name)
        return web.json_response({"id": name, "object": "response", "deleted": True})

    async def create(self, request: web.Request) -> web.StreamResponse:
        body, left_out = known_parts(await read_json(request, self._config))
        asked = read(ResponsesBody, body)
        before: Sequence[Json] = ()
        previous = asked.previous_response_id
        if previous is not None:
            found = self._kept.get(previous, request[USER])
            if found is None:
                raise _unknown(previous, "previous_response_id")
            before = found.messages
        messages = [*before, *read_input(asked)]
        beside = (*beyond(ResponsesBody, body, self._config.strict), *_unheeded(asked))
        with said_of("text.format"):
            parsed = asked_by(parse_chat_untrusted(chat_body(asked, messages), self._config), "text.format")
        parsed = naming(parsed, beside, left_out)
        user, keeps = request[USER], asked.store is not False

        def keep(body: Json) -> None:
            if keeps:
                self._kept.put(body["id"], user, [*messages, _said(body["output"])], body)

        voice = ResponsesVoice(request[REQUEST_ID].removeprefix("req_"), self._facts(asked), keep)
        return await self._completions.converse(request, parsed, voice)

    def _facts(self, asked: ResponsesBody) -> Json:
        """What a response repeats of its request."""
        return {
            "created_at": int(time.time()),
            "model": self._backend.manifest.model,
            "tools": to_builtins(asked.tools or []),
            "tool_choice": asked.tool_choice or "auto",
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "metadata": asked.metadata or {},
            "text": to_builtins(asked.text or {"format": {"type": "text"}}),
            "truncation": "disabled",
            "store": asked.store is not False,
            **{name: getattr(asked, name) for name in _ECHOED},
        }


class ResponsesVoice:
    """As /v1/responses says it: the items of a response so far, and the events that tell of them.

    `facts`: what it repeats of its request. `keep` is called with the response once it is whole.
    """

    def __init__(self, name: str, facts: Mapping[str, Any], keep: Callable[[Json], None]) -> None:
        self._name = name
        self._facts = facts
        self._keep = keep
        self._sent = 0
        self._output: list[Json] = []
        self._text = ""
        self._open: Literal["", "message", "reasoning", "function_call"] = ""
        self._call: Json = {}
        self._paced = False

    def stream(self, request: web.Request, config: GatewayConfig) -> EventStream:
        return EventStream(request, config.write_timeout_s, config.keepalive_comment_s)

    def opening(self, runs: Sequence[RunRequest]) -> Sequence[Event]:
        begun = self._body("in_progress")
        return self._numbered([{"type": f"response.{name}", "response": begun} for name in ("created", "in_progress")])

    def chunk(self, chunk: Json) -> Sequence[Event]:
        if "prompt_progress" in chunk:
            told = {"type": "response.in_progress", "response": self._body("in_progress")}
            return self._numbered([{**told, "prompt_progress": chunk["prompt_progress"]}])
        events = self._hear(delta_of(chunk))
        if "timings" in chunk and not chunk["choices"][0]["finish_reason"]:
            self._paced = True
            events = [{**each, "timings": chunk["timings"]} if "delta" in each else each for each in events]
        return self._numbered(events)

    def closing(self, results: Sequence[RunResult], usage: Json, last: Json) -> Sequence[Event]:
        events = self._close()
        body = self._whole(results[0], usage)
        pace = {"timings": last["timings"]} if self._paced else {}
        return self._numbered([*events, {"type": f"response.{body['status']}", "response": body, **pace}])

    def failed(self, error: ApiError) -> Sequence[Event]:
        body = {**self._body("failed"), "error": {"code": "server_error", "message": error.message}}
        return self._numbered([{"type": "response.failed", "response": body}])

    def whole(self, body: Json, results: Sequence[RunResult]) -> Json:
        self._hear(body["choices"][0]["message"])
        self._close()
        return {**self._whole(results[0], body["usage"]), "wanswarm": body.get("wanswarm")}

    def _numbered(self, events: Sequence[Json]) -> Sequence[Event]:
        first, self._sent = self._sent, self._sent + len(events)
        return [(event["type"], {**event, "sequence_number": first + i}) for i, event in enumerate(events)]

    def _hear(self, said: Mapping[str, Any]) -> list[Json]:
        """Events of a message or of a part of one."""
        events: list[Json] = []
        for name, kind in (("reasoning_content", "reasoning"), ("content", "message")):
            if text := said.get(name):
                events += self._written("reasoning" if kind == "reasoning" else "message", text)
        for call in said.get("tool_calls") or ():
            if "id" in call:
                events += self._close()
                events += self._called(call["id"], call["function"]["name"])
            if more := call["function"]["arguments"]:
                self._text += more
                kind = "response.function_call_arguments.delta"
                events.append({"type": kind, **self._here(), "delta": more})
        return events

    def _written(self, kind: Literal["message", "reasoning"], text: str) -> list[Json]:
        events: list[Json] = []
        if self._open != kind:
            events = [*self._close(), *self._begin(kind)]
        self._text += text
        more: Json = {"type": "response.reasoning_text.delta", **self._at(), "delta": text}
        if kind == "message":
            more = {"type": "response.output_text.delta", **self._at(), "delta": text, "logprobs": []}
        return [*events, more]

    def _called(self, call_id: str, name: str) -> list[Json]:
        self._open, self._text = "function_call", ""
        self._call = {"id": f"fc_{self._name}_{len(self._output)}", "type": "function_call", "call_id": call_id}
        self._call["name"] = name
        begun = {**self._call, "status": "in_progress", "arguments": ""}
        return [{"type": "response.output_item.added", "output_index": len(self._output), "item": begun}]

    def _close(self) -> list[Json]:
        """Ends the item that is being written."""
        if not self._open:
            return []
        at, text = self._at(), self._text
        if self._open == "function_call":
            item = {**self._call, "status": "completed", "arguments": text}
            told = {"type": "response.function_call_arguments.done", **self._here(), "name": item["name"]}
            events: list[Json] = [{**told, "arguments": text}]
        elif self._open == "reasoning":
            item = self._thought("completed", [_thought_part(text)])
            events = [
                {"type": "response.reasoning_text.done", **at, "text": text},
                {"type": "response.content_part.done", **at, "part": _thought_part(text)},
            ]
        else:
            item = self._message("completed", [_part(text)])
            events = [
                {"type": "response.output_text.done", **at, "text": text, "logprobs": []},
                {"type": "response.content_part.done", **at, "part": _part(text)},
            ]
        events.append({"type": "response.output_item.done", "output_index": at["output_index"], "item": item})
        self._output.append(item)
        self._open, self._text = "", ""
        return events

    def _begin(self, kind: Literal["message", "reasoning"]) -> list[Json]:
        self._open = kind
        at = self._at()
        item, part = self._message("in_progress", []), _part("")
        if kind == "reasoning":
            item, part = self._thought("in_progress", []), _thought_part("")
        return [
            {"type": "response.output_item.added", "output_index": at["output_index"], "item": item},
            {"type": "response.content_part.added", **at, "part": part},
        ]

    def _message(self, status: str, content: list[Json]) -> Json:
        name = f"msg_{self._name}_{len(self._output)}"
        return {"id": name, "type": "message", "status": status, "role": "assistant", "content": content}

    def _thought(self, status: str, content: list[Json]) -> Json:
        name = f"rs_{self._name}_{len(self._output)}"
        return {"id": name, "type": "reasoning", "status": status, "summary": [], "content": content}

    def _here(self) -> Json:
        return {"item_id": self._call["id"], "output_index": len(self._output)}

    def _at(self) -> Json:
        place, kind = len(self._output), "rs" if self._open == "reasoning" else "msg"
        return {"item_id": f"{kind}_{self._name}_{place}", "output_index": place, "content_index": 0}

    def _body(self, status: str) -> Json:
        return {
            "id": f"resp_{self._name}",
            "object": "response",
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": list(self._output),
            "usage": None,
            **self._facts,
        }

    def _whole(self, result: RunResult, usage: Json) -> Json:
        """The response once it is over; it is kept."""
        called = any(item["type"] == "function_call" for item in self._output)
        cut = result.finish_reason == "length" and not called
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        body = {
            **self._body("incomplete" if cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {
                    "reasoning_tokens": usage.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
                },
                "total_tokens": usage["total_tokens"],
            },
        }
        self._keep(body)
        return body


def _said(output: Sequence[Json]) -> Json:
    """The items of a response as one chat message."""
    texts = [part["text"] for item in output if item["type"] == "message" for part in item["content"]]
    said: Json = {"role": "assistant", "content": "".join(texts)}
    if thoughts := [part["text"] for item in output if item["type"] == "reasoning" for part in item["content"]]:
        said["reasoning_content"] = "".join(thoughts)
    calls = [item for item in output if item["type"] == "function_call"]
    if calls:
        said["tool_calls"] = [_tool_call(call["call_id"], call["name"], call["arguments"]) for call in calls]
    return said


def chat_body(asked: ResponsesBody, messages: Sequence[Json]) -> Json:
    """A request of /v1/responses as one of /v1/chat/completions. Raises ApiError."""
    for name in ("background", "conversation", "prompt"):
        if getattr(asked, name):
            raise bad_field(name, f"'{name}' is not supported here", "unsupported_parameter")
    first = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    choice, tools = _choice(asked)
    form = asked.text.format if asked.text is not None else None
    wanted: Json | None = None if form is None else {"type": form.type}
    if form is not None and form.type == "json_schema":
        wanted = {"type": form.type, "json_schema": {"name": form.name, "strict": form.strict, "schema": form.schema}}
    return given(
        messages=[*first, *messages],
        **{name: getattr(asked, name) for name in _SAME},
        max_tokens=asked.max_output_tokens,
        tools=tools or None,
        tool_choice=choice,
        reasoning_effort=asked.reasoning.effort if asked.reasoning is not None else None,
        response_format=wanted,
    )


def _choice(asked: ResponsesBody) -> tuple[Any, list[Json]]:
    """Which tool is to be called, if any, and those on offer: of `allowed_tools` no others."""
    choice = asked.tool_choice
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(asked.tools or ())]
    if not isinstance(choice, dict):
        return choice, tools
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}, tools
    if choice.get("type") == "allowed_tools" and isinstance(allowed := choice.get("tools"), list):
        names = [each.get("name") for each in allowed if isinstance(each, dict)]
        return choice.get("mode", "auto"), [tool for tool in tools if tool["function"]["name"] in names]
    return choice, tools


_TOOLS = re.compile(
    "(?:web_search|file_search|computer)[a-z0-9_]{0,40}|code_interpreter|image_generation|mcp|custom|namespace|"
    "tool_search|local_shell|shell|apply_patch"
)
"""Types of tools that OpenAI's servers or models bring along."""
_ITEMS = re.compile(
    "(?:web_search|file_search|computer|code_interpreter|image_generation|mcp|tool_search|shell|apply_patch)_call"
    "(?:_output)?|tool_search_output|mcp_list_tools|mcp_approval_(?:request|response)|ghost_snapshot"
)
"""Items that tell what those did, and Codex's own notes."""


def known_parts(body: Any) -> tuple[Any, list[str]]:
    """A body without what only OpenAI's servers understand, and what that was: their tools, and what these did. An item
    without a type is a message; one that stands for another, which is not here, is refused."""
    if not isinstance(body, dict):
        return body, []
    left_out = LeftOut()
    known = {**body, "tools": left_out.of(body.get("tools"), _TOOLS, "tools")}
    if isinstance(items := body.get("input"), list):
        for index, item in enumerate(items):
            if isinstance(item, dict) and item.get("type") == "item_reference":
                text = "an item of an earlier answer is not kept by itself; send it, or 'previous_response_id'"
                raise bad_field(f"input[{index}]", text, "unsupported_parameter")
        named = [{**i, "type": "message"} if isinstance(i, dict) and i.get("type") is None else i for i in items]
        known["input"] = left_out.of(named, _ITEMS, "input") or items
    return {name: value for name, value in known.items() if name in body}, left_out.names


def _unheeded(asked: ResponsesBody) -> tuple[str, ...]:
    """Fields that ask for what is not to be had, without which an answer is good all the same."""
    return (*(["include"] if asked.include else []), *(["truncation"] if asked.truncation == "auto" else []))


def read_input(asked: ResponsesBody) -> list[Json]:
    """The items of `input` as chat messages."""
    if isinstance(asked.input, str):
        return [{"role": "user", "content": asked.input}]
    messages: list[Json] = []
    thought = ""  # belongs to what the assistant said after it
    for item in asked.input:
        match item:
            case MessageItem():
                messages.append({"role": item.role, "content": _content(item.content)})
            case CallItem():
                _call(messages, item.call_id, item.name, item.arguments)
            case CustomCallItem():
                _call(messages, item.call_id, item.name, json.dumps({"input": item.input}))
            case ShellCallItem():
                _call(messages, item.call_id or item.id or "", "local_shell", json.dumps(item.action))
            case CallOutputItem() | ShellCallOutputItem():
                name = item.call_id or getattr(item, "id", None) or ""
                messages.append({"role": "tool", "tool_call_id": name, "content": _content(item.output)})
            case ReasoningItem():
                thought += "".join(part.text or "" for part in item.content or ())
                continue
        if thought and messages[-1]["role"] == "assistant":
            messages[-1]["reasoning_content"] = messages[-1].get("reasoning_content", "") + thought
        thought = ""
    return messages


def _call(messages: list[Json], name: str, function: str, arguments: str) -> None:
    """A call belongs to what the assistant said right before it."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    messages[-1].setdefault("tool_calls", []).append(_tool_call(name, function, arguments))


def _content(value: ItemContent) -> str:
    return value if isinstance(value, str) else joined_parts(part.text for part in value)


def _tool(tool: ResponsesTool, path: str) -> Json:
    if tool.type != "function":
        raise bad_field(f"{path}.type", "only tools of type function are to be had here", "unsupported_parameter")
    function = given(name=tool.name, description=tool.description, parameters=tool.parameters)
    return {"type": "function", "function": function}


def _tool_call(name: str, function: str, arguments: str) -> Json:
    return {"id": name, "type": "function", "function": {"name": function, "arguments": arguments}}


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _thought_part(text: str) -> Json:
    return {"type": "reasoning_text", "text": text}


def _unknown(name: str, param: str | None = None) -> ApiError:
    text = f"no response {name[:200]!r} is kept here; send the whole conversation as 'input'"
    return ApiError(404, text, "response_not_found", param)
