"""Anthropic's API: POST /v1/messages and /v1/messages/count_tokens.

Source: the Messages API reference, version 2023-06-01. `thinking` blocks that come back are told to the
chat template, which knows whether the model wants to see them; a last message of the assistant is gone on with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aiohttp import web

from swarm.model.text.decoder import TokenDecoder
from swarm.run.api import RunRequest, RunResult
from swarm.serve.arguments import ObjectStream, for_client, text_of
from swarm.serve.backend import Backend
from swarm.serve.body import beyond, outside, read
from swarm.serve.compat.bodies import (
    AnthropicChoice,
    AnthropicMessage,
    AnthropicTool,
    CountBody,
    DocumentBlock,
    ImageBlock,
    MessagesBody,
    TextBlock,
    TextBlocks,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from swarm.serve.compat.left_out import LeftOut, naming
from swarm.serve.compat.shapes import anthropic_error, asked_by, fitted, given, no_pictures, said_of
from swarm.serve.completions import Completions
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError, bad_field
from swarm.serve.messages import instructed, joined_parts
from swarm.serve.parse import parse_chat_untrusted, prefilled
from swarm.serve.plan import plan_chat
from swarm.serve.stream import EventStream
from swarm.serve.voice import Event, Json, delta_of
from swarm.serve.web import ALIAS_PROMPT, IGNORED, REQUEST_ID, USER, read_json

_SAME = ("model", "temperature", "top_p", "top_k")


class AnthropicViews:
    """The handlers."""

    def __init__(self, backend: Backend, config: GatewayConfig, completions: Completions) -> None:
        self._backend, self._config, self._completions = backend, config, completions

    async def messages(self, request: web.Request) -> web.StreamResponse:
        body, left_out = known_parts(await read_json(request, self._config))
        asked = read(MessagesBody, body)
        chat = {**chat_body(asked), "max_tokens": asked.max_tokens, **given(stream=asked.stream)}
        beside = beyond(MessagesBody, body, self._config.strict)
        field = _form(asked)[0]
        with said_of(field):
            parsed = asked_by(parse_chat_untrusted(prefilled(chat), self._config), field)
        parsed = naming(parsed, beside, left_out)
        stops = tuple(parsed.wanted.stop)
        voice = AnthropicVoice(request[REQUEST_ID], self._backend.manifest.model, stops, self._backend)
        return await self._completions.converse(request, fitted(parsed), voice)

    async def count(self, request: web.Request) -> web.Response:
        body, left_out = known_parts(await read_json(request, self._config))
        asked = read(CountBody, body)
        parsed = parse_chat_untrusted(prefilled({**chat_body(asked), "max_tokens": 1}), self._config)
        request[IGNORED] = (*beyond(MessagesBody, body, self._config.strict), *left_out)
        parsed = replace(parsed, messages=instructed(parsed.messages, request.get(ALIAS_PROMPT, "")))
        runs = await plan_chat(fitted(parsed), self._backend, self._config, request[USER])
        return web.json_response({"input_tokens": len(runs[0].prompt_ids)})


_TOOLS = re.compile(r"[a-z_]{1,64}_20\d{6}")
"""Types of Anthropic's own tools, by the day of their version."""
_BLOCKS = re.compile(r"server_tool_use|mcp_tool_use|[a-z_]{1,64}_tool_result")
"""Blocks that tell what those did."""


def known_parts(body: Any) -> tuple[Any, list[str]]:
    """A body without what only Anthropic's servers understand, and what that was: their tools, and what these did."""
    left_out = LeftOut()
    if not isinstance(body, dict):
        return body, []
    known = {**body, "tools": left_out.of(body.get("tools"), _TOOLS, "tools")}
    if isinstance(messages := body.get("messages"), list):
        known["messages"] = [
            {**item, "content": left_out.of(item.get("content"), _BLOCKS, f"messages[{index}].content")}
            if isinstance(item, dict)
            else item
            for index, item in enumerate(messages)
        ]
    return {name: value for name, value in known.items() if name in body}, left_out.names


def chat_body(asked: CountBody) -> Json:
    """Body of /v1/messages in OpenAI's words, without the limit of tokens. Raises ApiError 400."""
    system = _text_of(asked.system, "system")
    messages: list[Json] = [{"role": "system", "content": system}] if system else []
    for index, item in enumerate(asked.messages):
        messages += _messages(item, f"messages[{index}]")
    tools = [_tool(item, f"tools[{index}]") for index, item in enumerate(asked.tools or ())]
    return {
        **given(**{name: getattr(asked, name) for name in _SAME}),
        "messages": messages,
        **given(tools=tools or None, stop=asked.stop_sequences or None, tool_choice=_choice(asked) if tools else None),
        **given(response_format=_form(asked)[1]),
        **_thinking(asked),
    }


def _form(asked: CountBody) -> tuple[str, Json | None]:
    """The field that asks for a form, and the form in OpenAI's words. Raises ApiError."""
    config, older = asked.output_config, asked.output_format
    form = config.format if config is not None else None
    if form is not None and older is not None:
        raise bad_field("output_format", "expected 'output_config.format' or 'output_format', found both")
    field = "output_config.format" if older is None else "output_format"
    if (form := form or older) is None:
        return field, None
    if form.type != "json_schema":
        raise outside(f"{field}.type", "json_schema", form.type)
    if form.schema is None:
        raise bad_field(f"{field}.schema", f"expected '{field}.schema' to be a JSON Schema, found none")
    return field, {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.schema}}


def _thinking(asked: CountBody) -> Json:
    effort = given(reasoning_effort=asked.output_config.effort if asked.output_config is not None else None)
    if asked.thinking is None or not asked.thinking.type:
        return effort
    kind, budget = asked.thinking.type, asked.thinking.budget_tokens
    return {
        **effort,
        "chat_template_kwargs": {"enable_thinking": kind != "disabled"},
        **given(thinking_budget=budget if kind == "enabled" else None),
    }


def _choice(asked: CountBody) -> Any:
    choice = asked.tool_choice or AnthropicChoice()
    named = {"type": "function", "function": {"name": choice.name}}
    words = {None: "auto", "auto": "auto", "none": "none", "any": "required", "tool": named}
    if choice.type not in words:
        raise outside("tool_choice.type", "one of auto, any, tool, none", choice.type)
    return words[choice.type]


def _tool(tool: AnthropicTool, path: str) -> Json:
    if tool.type not in (None, "custom"):
        raise outside(f"{path}.type", "custom", tool.type)
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _messages(item: AnthropicMessage, path: str) -> list[Json]:
    """One message in OpenAI's words: results of tools become messages of their own, before the text beside them."""
    if isinstance(item.content, str):
        return [{"role": item.role, "content": item.content}]
    results: list[Json] = []
    calls: list[Json] = []
    texts: list[str] = []
    thoughts: list[str] = []
    for index, block in enumerate(item.content or ()):
        where = f"{path}.content[{index}]"
        match block:
            case TextBlock():
                texts.append(block.text or "")
            case ToolUseBlock():
                function = {"name": block.name, "arguments": text_of(block.input)}
                calls.append({"id": block.id or "", "type": "function", "function": function})
            case ToolResultBlock():
                told = _text_of(block.content, f"{where}.content")
                results.append({"role": "tool", "tool_call_id": block.tool_use_id or "", "content": told})
            case ImageBlock() | DocumentBlock():
                raise no_pictures(where)
            case ThinkingBlock():
                thoughts.append(block.thinking or "")
            case _:
                pass  # thoughts that nobody can read
    said: Json = {"role": item.role, "content": joined_parts(texts), **given(tool_calls=calls or None)}
    if thoughts and item.role == "assistant":
        said["reasoning_content"] = "".join(thoughts)
    return [*results, said] if texts or calls or not results else results


def _text_of(value: str | TextBlocks | None, path: str) -> str:
    """A string, or text blocks joined."""
    if value is None or isinstance(value, str):
        return value or ""
    for index, block in enumerate(value):
        if not isinstance(block, TextBlock):
            raise no_pictures(f"{path}[{index}]")
    return joined_parts(block.text or "" for block in value if isinstance(block, TextBlock))


class AnthropicVoice:
    """As /v1/messages says it. `decoder`: by its text the stop sequence that matched is found."""

    def __init__(self, request_id: str, model: str, stops: Sequence[str], decoder: TokenDecoder) -> None:
        self._request_id = request_id
        self._id = "msg_" + request_id.removeprefix("req_")
        self._model, self._stops, self._decoder = model, stops, decoder
        self._block = -1
        self._in = ""
        self._finish: str | None = None
        self._called = False
        self._input = ObjectStream()

    def stream(self, request: web.Request, config: GatewayConfig) -> EventStream:
        return EventStream(request, config.write_timeout_s, config.keepalive_comment_s)

    def opening(self, runs: Sequence[RunRequest]) -> Sequence[Event]:
        usage = {"input_tokens": len(runs[0].prompt_ids), "output_tokens": 0}
        message = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return (_event("message_start", message=message),)

    def chunk(self, chunk: Json) -> Sequence[Event]:
        delta = delta_of(chunk)
        self._finish = chunk["choices"][0]["finish_reason"] if chunk["choices"] else self._finish
        events: list[Event] = []
        for name, kind, key in (("reasoning_content", "thinking", "thinking"), ("content", "text", "text")):
            text = delta.get(name)
            if not text:
                continue
            if self._in != kind:
                begun: Json = {"type": kind, key: ""}
                events += self._begin({**begun, "signature": ""} if kind == "thinking" else begun)
                self._in = kind
            events.append(self._more({"type": f"{kind}_delta", key: text}))
        for call in delta.get("tool_calls") or ():
            function = call["function"]
            if "id" in call:
                events += self._begin({"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}})
                self._in, self._called, self._input = "tool_use", True, ObjectStream()
            events += self._argued(self._input.feed(function["arguments"]))
        return events

    def closing(self, results: Sequence[RunResult], usage: Json, last: Json) -> Sequence[Event]:
        reason, stop = self._reason(results[0], self._called and self._finish != "length")
        told = {"stop_reason": reason, "stop_sequence": stop}
        return [
            *self._end_block(),
            _event("message_delta", delta=told, usage=_usage(usage)),
            _event("message_stop"),
        ]

    def failed(self, error: ApiError) -> Sequence[Event]:
        return (("error", anthropic_error(error, self._request_id)),)

    def whole(self, body: Json, results: Sequence[RunResult]) -> Json:
        message = body["choices"][0]["message"]
        calls = message.get("tool_calls") or ()
        content: list[Json] = []
        if message.get("reasoning_content"):
            content.append({"type": "thinking", "thinking": message["reasoning_content"], "signature": ""})
        if message.get("content"):
            content.append({"type": "text", "text": message["content"]})
        content += [
            {
                "type": "tool_use",
                "id": call["id"],
                "name": call["function"]["name"],
                "input": for_client(call["function"]["arguments"]),
            }
            for call in calls
        ]
        reason, stop = self._reason(results[0], body["choices"][0]["finish_reason"] == "tool_calls")
        told = {"content": content, "stop_reason": reason, "stop_sequence": stop, "usage": _usage(body["usage"])}
        return {**self._head(), **told, "wanswarm": body.get("wanswarm")}

    def _head(self) -> Json:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._model}

    def _begin(self, block: Json) -> list[Event]:
        ended = self._end_block()
        self._block += 1
        return [*ended, _event("content_block_start", index=self._block, content_block=block)]

    def _more(self, delta: Json) -> Event:
        return _event("content_block_delta", index=self._block, delta=delta)

    def _argued(self, written: str) -> list[Event]:
        return [self._more({"type": "input_json_delta", "partial_json": written})] if written else []

    def _end_block(self) -> list[Event]:
        if self._block < 0:
            return []
        signed = [self._more({"type": "signature_delta", "signature": ""})] if self._in == "thinking" else []
        signed += self._argued(self._input.finish()) if self._in == "tool_use" else []
        self._in = ""
        return [*signed, _event("content_block_stop", index=self._block)]

    def _reason(self, result: RunResult, called: bool) -> tuple[str, str | None]:
        if called:
            return "tool_use", None
        if result.finish_reason == "length":
            return "max_tokens", None
        behind = self._decoder.decode(result.token_ids)[len(result.text) :] if self._stops else ""
        found = next((stop for stop in self._stops if behind.startswith(stop)), None)
        return ("end_turn", None) if found is None else ("stop_sequence", found)


def _event(kind: str, **fields: Any) -> Event:
    return kind, {"type": kind, **fields}


def _usage(usage: Json) -> Json:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "output_tokens": usage["completion_tokens"],
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
    }
