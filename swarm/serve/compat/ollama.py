"""Ollama's API: /api/chat, /api/generate, /api/tags, /api/show, /api/ps, /api/version.

Source: the API page of ollama's repository (docs/api.md), as of version 0.13. A stream is JSON objects, one a line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from swarm.run.api import RunRequest, RunResult
from swarm.serve.backend import Backend
from swarm.serve.compat.shapes import a_list, a_text, an_object, arguments_of, fitted, given, no_pictures
from swarm.serve.completions import Completions
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError
from swarm.serve.messages import MAX_MESSAGES
from swarm.serve.parse import parse_chat_untrusted
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
        body = an_object(await read_json(request, self._config), "the body")
        asked = chat_body(body)
        if not asked["messages"]:
            return web.json_response(self._loaded({"message": {"role": "assistant", "content": ""}}, body))
        return await self._converse(request, asked, OllamaVoice(self._backend.manifest.model, chat=True))

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = an_object(await read_json(request, self._config), "the body")
        if not body.get("prompt"):
            return web.json_response(self._loaded({"response": ""}, body))
        return await self._converse(request, generate_body(body), OllamaVoice(self._backend.manifest.model, chat=False))

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": FOLLOWED_VERSION})

    async def show(self, request: web.Request) -> web.Response:
        body = an_object(await read_json(request, self._config), "the body")
        check_model(model_of(body), self._backend)
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
                    *(["thinking"] if (marks := Marks.of(template)).thoughts or marks.harmony else []),
                ],
                "modified_at": self._since,
            }
        )

    async def missing(self, request: web.Request) -> web.Response:
        name = request.path.rpartition("/")[2]
        raise ApiError(501, f"{name} is not offered: this gateway serves text models of swarms", "not_implemented")

    async def _converse(self, request: web.Request, asked: Json, voice: OllamaVoice) -> web.StreamResponse:
        parsed = parse_chat_untrusted(asked, self._config)
        return await self._completions.converse(request, fitted(parsed), voice)

    def _loaded(self, answer: Json, body: Mapping[str, Any]) -> Json:
        """The answer to an empty request, by which clients have a model loaded."""
        check_model(model_of(body), self._backend)
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


def model_of(body: Mapping[str, Any]) -> str | None:
    """The model's name without the tag that ollama's clients add."""
    name = a_text(body.get("model", body.get("name")), "model")
    return name.removesuffix(":latest") or None


def chat_body(body: Mapping[str, Any]) -> Json:
    """Body of /api/chat in OpenAI's words. Raises ApiError 400."""
    messages = [
        _message(an_object(item, f"messages[{index}]"), f"messages[{index}]", index)
        for index, item in enumerate(a_list(body.get("messages"), "messages", MAX_MESSAGES))
    ]
    tools = body.get("tools")
    return {**_options(body), "messages": messages, **given(tools=tools or None)}


def generate_body(body: Mapping[str, Any]) -> Json:
    """Body of /api/generate as a chat of one message. Raises ApiError 400."""
    if a_list(body.get("images"), "images", 64):
        raise no_pictures("images")
    for name, why in (("suffix", "text is continued, not filled in"), ("raw", "use /v1/completions for a bare prompt")):
        if body.get(name):
            raise ApiError(400, f"'{name}' is not supported: {why}", "unsupported_parameter", name)
    system, prompt = a_text(body.get("system"), "system"), a_text(body.get("prompt"), "prompt")
    messages = [{"role": "system", "content": system}] if system else []
    return {**_options(body), "messages": [*messages, {"role": "user", "content": prompt}]}


def _message(item: Mapping[str, Any], path: str, index: int) -> Json:
    if a_list(item.get("images"), f"{path}.images", 64):
        raise no_pictures(f"{path}.images")
    message: Json = {"role": item.get("role"), "content": a_text(item.get("content"), f"{path}.content")}
    calls = a_list(item.get("tool_calls"), f"{path}.tool_calls", 128)
    if calls:
        message["tool_calls"] = [_call(call, f"{path}.tool_calls[{n}]", index, n) for n, call in enumerate(calls)]
    if item.get("role") == "tool":
        message["tool_call_id"] = a_text(item.get("tool_name", item.get("tool_call_id")), f"{path}.tool_name")
    return message


def _call(call: Any, path: str, index: int, number: int) -> Json:
    function = an_object(an_object(call, path).get("function"), f"{path}.function")
    arguments = an_object(function.get("arguments") or {}, f"{path}.function.arguments")
    told = {"name": function.get("name"), "arguments": json.dumps(arguments)}
    return {"id": f"call_{index}_{number}", "type": "function", "function": told}


def _options(body: Mapping[str, Any]) -> Json:
    """Sampling and form. Options that only tune ollama's own engine (num_ctx, num_gpu, mirostat) have no effect."""
    options = an_object(body.get("options") or {}, "options")
    wanted = {name: options[name] for name in _SAME if options.get(name) is not None}
    limit = options.get("num_predict")
    if isinstance(limit, int) and limit > 0:
        wanted["max_tokens"] = limit
    if options.get("repeat_penalty") is not None:
        wanted["repetition_penalty"] = options["repeat_penalty"]
    form = body.get("format")
    if form == "json":
        wanted["response_format"] = {"type": "json_object"}
    elif isinstance(form, dict):
        wanted["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": form}}
    think = body.get("think")
    if isinstance(think, bool):
        wanted["chat_template_kwargs"] = {"enable_thinking": think}
    elif isinstance(think, str):
        wanted["reasoning_effort"] = think
    stream = body.get("stream")
    return {**wanted, **given(model=model_of(body)), "stream": True if stream is None else stream}


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


def _call_told(function: Mapping[str, Any]) -> Json:
    return {"function": {"name": function["name"], "arguments": arguments_of(function)}}


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
