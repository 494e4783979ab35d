"""Ollama's API: /api/chat, /api/generate, /api/tags, /api/show, /api/ps, /api/version.

Source: the API page of ollama's repository (docs/api.md), as of version 0.13. A stream is JSON objects, one a line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from msgspec import to_builtins

from swarm.model.text.spelling import Spelling
from swarm.run.api import RunRequest, RunResult
from swarm.serve.answer import TextShape
from swarm.serve.arguments import for_client, text_of
from swarm.serve.backend import Backend
from swarm.serve.body import outside, read
from swarm.serve.compat.bodies import (
    OllamaCall,
    OllamaChatBody,
    OllamaCommon,
    OllamaGenerateBody,
    OllamaMessage,
    OllamaShowBody,
)
from swarm.serve.compat.shapes import asked_by, fitted, given, no_pictures, said_of
from swarm.serve.completions import Completions
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError
from swarm.serve.infill import InfillMarks
from swarm.serve.parse import parse_chat_untrusted, parse_completion_untrusted, prefilled, stops_listed
from swarm.serve.plan import check_model
from swarm.serve.stream import EventStream
from swarm.serve.tools import Marks
from swarm.serve.voice import Event, Json, delta_of
from swarm.serve.web import read_json

_SAME = ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty")
FOLLOWED_VERSION = "0.13.0"
"""What /api/version says: the version of the API that is spoken. Clients compare it with the least that they need."""

NEVER_S = 1e9
"""Lines are JSON objects: there is none that a client would skip, so nothing is sent while it waits."""


class OllamaViews:
    """The handlers."""

    def __init__(self, backend: Backend, config: GatewayConfig, completions: Completions) -> None:
        self._backend, self._config, self._completions = backend, config, completions
        self._since = datetime.now(UTC).isoformat()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        asked = read(OllamaChatBody, _stops_listed(await read_json(request, self._config)))
        if not asked.messages:
            return web.json_response(self._loaded({"message": {"role": "assistant", "content": ""}}, asked))
        return await self._converse(request, chat_body(asked), OllamaVoice(self._backend.manifest.model, chat=True))

    async def generate(self, request: web.Request) -> web.StreamResponse:
        asked = read(OllamaGenerateBody, _stops_listed(await read_json(request, self._config)))
        if not asked.prompt:
            return web.json_response(self._loaded({"response": ""}, asked))
        if asked.raw or asked.suffix:
            return await self._continue(request, asked)
        voice = OllamaVoice(self._backend.manifest.model, chat=False)
        return await self._converse(request, generate_body(asked), voice)

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": FOLLOWED_VERSION})

    async def show(self, request: web.Request) -> web.Response:
        check_model(model_of(read(OllamaShowBody, await read_json(request, self._config))), self._backend)
        template = getattr(self._backend.tokenizer, "chat_template", None) or ""
        manifest = self._backend.manifest
        return web.json_response(
            {
                "modelfile": "",
                "parameters": "\n".join(f"{name} {value}" for name, value in self._config.model_sampling.items()),
                "template": template if isinstance(template, str) else json.dumps(template),
                "details": self._details(),
                "model_info": {
                    "general.architecture": "wanswarm",
                    "wanswarm.context_length": manifest.context,
                    "wanswarm.block_count": manifest.n_layers,
                    "wanswarm.manifest_digest": manifest.digest,
                },
                "capabilities": [
                    "completion",
                    *(["tools"] if template else []),
                    *(["insert"] if InfillMarks.of(self._backend.tokenizer) is not None else []),
                    *(["thinking"] if (marks := Marks.of(template)).thoughts or marks.harmony else []),
                ],
                "modified_at": self._since,
            }
        )

    async def missing(self, request: web.Request) -> web.Response:
        name = request.path.rpartition("/")[2]
        raise ApiError(501, f"{name} is not offered: this gateway serves text models of swarms", "not_implemented")

    async def _converse(self, request: web.Request, asked: Json, voice: OllamaVoice) -> web.StreamResponse:
        with said_of("format"):
            parsed = asked_by(parse_chat_untrusted(prefilled(asked), self._config), "format")
        return await self._completions.converse(request, fitted(parsed), voice)

    async def _continue(self, request: web.Request, asked: OllamaGenerateBody) -> web.StreamResponse:
        """A bare prompt, or one with a text behind the missing part."""
        _check_bare(asked)
        body = {"max_tokens": self._config.default_max_tokens, **_options(asked), "prompt": asked.prompt or ""}
        body.pop("chat_template_kwargs", None)  # "think": false
        with said_of("format"):
            parsed = parse_completion_untrusted({**body, **given(suffix=asked.suffix)}, self._config)
        parsed = replace(parsed, wanted=replace(parsed.wanted, fit=True))

        def shaped(envelope: tuple[str, int, str], runs: Sequence[RunRequest], spelling: Spelling) -> TextShape:
            return TextShape(*envelope, parsed.wanted, spelling, 1)

        voice = OllamaTextVoice(self._backend.manifest.model, chat=False)
        return await self._completions.continue_text(request, parsed, shaped, voice)

    def _loaded(self, answer: Json, asked: OllamaCommon) -> Json:
        """The answer to an empty request, by which clients have a model loaded."""
        check_model(model_of(asked), self._backend)
        return {**_head(self._backend.manifest.model), **answer, "done": True, "done_reason": "load"}

    def entry(self) -> Json:
        """The model, as lists of models tell of it."""
        manifest = self._backend.manifest
        size = sum(manifest.layer_bytes(layer) for layer in range(manifest.n_layers))
        entry = {"name": manifest.model, "model": manifest.model, "modified_at": self._since, "size": size}
        return {**entry, "digest": manifest.digest, "details": self._details()}

    def _details(self) -> Json:
        return {
            "parent_model": "",
            "format": "wanswarm",
            "family": "",
            "families": [],
            "parameter_size": "",
            "quantization_level": "",
        }


def model_of(asked: OllamaCommon | OllamaShowBody) -> str | None:
    """The model's name without the tag that ollama's clients add."""
    name = asked.name if asked.model is None else asked.model
    return (name or "").removesuffix(":latest") or None


def chat_body(asked: OllamaChatBody) -> Json:
    """Body of /api/chat in OpenAI's words. Raises ApiError 400."""
    messages = [_message(item, f"messages[{index}]", index) for index, item in enumerate(asked.messages or ())]
    return {**_options(asked), "messages": messages, **given(tools=to_builtins(asked.tools) or None)}


def generate_body(asked: OllamaGenerateBody) -> Json:
    """Body of /api/generate as a chat of one message. Raises ApiError 400."""
    if asked.images:
        raise no_pictures("images")
    messages = [{"role": "system", "content": asked.system}] if asked.system else []
    return {**_options(asked), "messages": [*messages, {"role": "user", "content": asked.prompt or ""}]}


def _check_bare(asked: OllamaGenerateBody) -> None:
    """What has no place without the chat template is refused, as ollama does it."""
    if asked.images:
        raise no_pictures("images")
    for name in ("system", "think"):
        if getattr(asked, name):
            why = "'raw' and 'suffix' go without the chat template, which alone knows of it"
            raise ApiError(400, f"'{name}' is not supported here: {why}", "unsupported_parameter", name)


def _message(item: OllamaMessage, path: str, index: int) -> Json:
    if item.images:
        raise no_pictures(f"{path}.images")
    message: Json = {"role": item.role, "content": item.content or ""}
    if item.thinking and item.role == "assistant":
        message["reasoning_content"] = item.thinking
    if item.tool_calls:
        message["tool_calls"] = [_call(call, f"call_{index}_{number}") for number, call in enumerate(item.tool_calls)]
    if item.role == "tool":
        message["tool_call_id"] = item.tool_name or item.tool_call_id or ""
    return message


def _call(call: OllamaCall, name: str) -> Json:
    told = {"name": call.function.name, "arguments": text_of(call.function.arguments)}
    return {"id": name, "type": "function", "function": told}


def _stops_listed(body: Any) -> Any:
    """One stop string is a list of one, also in what is said of it."""
    return {**body, "options": stops_listed(body["options"])} if isinstance(body, dict) and "options" in body else body


def _options(asked: OllamaCommon) -> Json:
    """Sampling and form."""
    wanted: Json = {"model": model_of(asked), "stream": asked.stream is not False}
    if (options := asked.options) is not None:
        wanted |= {name: getattr(options, name) for name in _SAME}
        wanted["repetition_penalty"] = options.repeat_penalty
        if isinstance(options.num_predict, int) and options.num_predict > 0:
            wanted["max_tokens"] = options.num_predict
    if asked.format == "json":
        wanted["response_format"] = {"type": "json_object"}
    elif isinstance(asked.format, dict):
        wanted["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": asked.format}}
    elif asked.format not in (None, ""):
        raise outside("format", "json, or a JSON Schema", asked.format)
    if isinstance(asked.think, bool):
        wanted["chat_template_kwargs"] = {"enable_thinking": asked.think}
    elif isinstance(asked.think, str):
        wanted["reasoning_effort"] = asked.think
    return given(**wanted)


def _head(model: str) -> Json:
    return {"model": model, "created_at": datetime.fromtimestamp(time.time(), UTC).isoformat()}


class _Lines(EventStream):
    """JSON objects, one a line."""

    content_type = "application/x-ndjson"

    def encode(self, data: Any, event: str | None) -> bytes:
        return (json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


class OllamaVoice:
    """As /api/chat says it, or /api/generate."""

    def __init__(self, model: str, chat: bool) -> None:
        self._model, self._chat = model, chat
        self._calls: list[Json] = []
        """Begun, with the arguments so far: this API has calls whole."""

    def stream(self, request: web.Request, config: GatewayConfig) -> EventStream:
        return _Lines(request, config.write_timeout_s, NEVER_S)

    def opening(self, runs: Sequence[RunRequest]) -> Sequence[Event]:
        return ()

    def chunk(self, chunk: Json) -> Sequence[Event]:
        delta = delta_of(chunk)
        whole: list[Json] = []
        for call in delta.get("tool_calls") or ():
            if "id" in call:
                whole, self._calls = [*whole, *self._calls], [{"function": dict(call["function"])}]
            else:
                self._calls[-1]["function"]["arguments"] += call["function"]["arguments"]
        if not delta.get("content") and not delta.get("reasoning_content") and not whole:
            return ()
        return (self._line({**delta, "tool_calls": whole}),)

    def closing(self, results: Sequence[RunResult], usage: Json, last: Json) -> Sequence[Event]:
        rest = [self._line({"tool_calls": self._calls})] if self._calls else []
        return [*rest, (None, {**_head(self._model), **self._said({}), **_ended(results[0])})]

    def _line(self, delta: Mapping[str, Any]) -> Event:
        return None, {**_head(self._model), **self._said(delta), "done": False}

    def failed(self, error: ApiError) -> Sequence[Event]:
        return ((None, {"error": error.message}),)

    def whole(self, body: Json, results: Sequence[RunResult]) -> Json:
        return {**_head(self._model), **self._said(body["choices"][0]["message"]), **_ended(results[0])}

    def _said(self, message: Mapping[str, Any]) -> Json:
        content = message.get("content") or ""
        thought = given(thinking=message.get("reasoning_content"))
        if not self._chat:
            return {"response": content, **thought}
        said: Json = {"role": "assistant", "content": content, **thought}
        calls = message.get("tool_calls")
        if calls:
            said["tool_calls"] = [_call_told(call["function"]) for call in calls]
        return {"message": said}


class OllamaTextVoice(OllamaVoice):
    """As /api/generate says what continues a text."""

    def chunk(self, chunk: Json) -> Sequence[Event]:
        text = "".join(choice["text"] for choice in chunk["choices"])
        return (self._line({"content": text}),) if text else ()

    def whole(self, body: Json, results: Sequence[RunResult]) -> Json:
        told = {"message": {"content": body["choices"][0]["text"]}}
        return super().whole({**body, "choices": [told]}, results)


def _call_told(function: Mapping[str, Any]) -> Json:
    return {"function": {"name": function["name"], "arguments": for_client(function["arguments"])}}


def _ended(result: RunResult) -> Json:
    """The last object's figures; durations in nanoseconds."""
    return {
        "done": True,
        "done_reason": "length" if result.finish_reason == "length" else "stop",
        "total_duration": int(result.seconds * 1e9),
        "load_duration": 0,
        "prompt_eval_count": len(result.prompt_token_ids),
        "prompt_eval_duration": int(result.ttft_seconds * 1e9),
        "eval_count": result.new_tokens,
        "eval_duration": int(max(0.0, result.seconds - result.ttft_seconds) * 1e9),
    }
