"""The gateway's OpenAPI description: addresses, and what is posted to them, from the types that bodies are read by.

The tests hold it to the code by generated requests.
"""

from __future__ import annotations

from typing import Any

from swarm import __version__
from swarm.serve.body import schemas_of
from swarm.serve.compat.bodies import (
    CountBody,
    InfillBody,
    LlamaBody,
    MessagesBody,
    OllamaChatBody,
    OllamaGenerateBody,
    OllamaShowBody,
    ResponsesBody,
)
from swarm.serve.compat.shapes import MISSING, NOT_OLLAMA
from swarm.serve.config import GatewayConfig
from swarm.serve.requests import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    GenerateBody,
    TokenizeChatBody,
    TokenizeTextBody,
)

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_ANY: Json = {}
_OPENAI = (ChatBody, CompletionBody, GenerateBody, TokenizeChatBody, TokenizeTextBody, DetokenizeBody)
_OLLAMA = (OllamaChatBody, OllamaGenerateBody, OllamaShowBody)
_OTHERS = (ResponsesBody, MessagesBody, CountBody, *_OLLAMA, LlamaBody, InfillBody)
_REFUSALS = {
    "400": "the request is wrong; `param` names the field",
    "401": "no known API key",
    "403": "a foreign web page, or a host name that is not ours",
    "404": "no such thing",
    "408": "the body came too slowly",
    "413": "the body is too large",
    "415": "not JSON",
    "429": "too many requests of yours are waiting; see Retry-After",
    "501": "this gateway serves text models alone",
    "503": "the swarm is busy or incomplete; see Retry-After",
}
_OF_POST = ("400", "401", "403", "404", "408", "413", "415", "429", "503")


def describe(config: GatewayConfig) -> Json:
    """OpenAPI 3.1 document for a gateway with these limits."""
    schemas = {**_bodies(config), "Answer": _answer(), **_errors()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "wanswarm gateway", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": {**_posted(), **_looked_up(), **_missing()},
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        **({"security": [{"key": []}]} if config.api_keys else {}),
    }


def _bodies(config: GatewayConfig) -> Json:
    """The types, and what they do not say: bounds that are settings, and what depends on other fields."""
    found = schemas_of(*_OPENAI, *_OTHERS)
    for name in ("ChatBody", "CompletionBody"):
        found[name]["properties"]["n"]["anyOf"][0]["maximum"] = config.max_choices
    for name in ("ChatBody", "CompletionBody", "GenerateBody"):
        found[name]["additionalProperties"] = not config.strict
    found["CompletionBody"]["properties"]["best_of"]["anyOf"][0]["maximum"] = config.max_choices
    found["TokenizeTextBody"]["anyOf"] = [
        {"required": [name], "properties": {name: _TEXT}} for name in ("prompt", "content")
    ]
    return found


def _posted() -> Json:
    chat = _streamed(
        _json(_ref("Answer"), "the answer; with stream: server-sent events of chunks, the last one [DONE]")
    )
    tokens = _json(_object("tokens", "count", "max_model_len"), "the ids")
    generated = _object(
        "text", "finish_reason", "prompt_tokens", "new_tokens", "run_id", "receipt", "tokens_per_second"
    )
    native = _streamed(_json(_ANY, "the answer, or one for each prompt; with stream: its events"))
    lines = _json(_object(), "the answer; one JSON object a line, unless stream is false")
    lines["content"]["application/x-ndjson"] = {"schema": _ANY}
    message = _json(_object("id", "type", "role", "content", "usage"), "the message; with stream: its events")
    response = _json(_object("id", "object", "output", "usage"), "the response; with stream: its events")
    return {
        "/v1/chat/completions": _post("Answer a chat", "ChatBody", chat),
        "/v1/completions": _post("Continue a text", "CompletionBody", chat),
        "/chat/completions": _post("Answer a chat", "ChatBody", chat, error="LlamaError"),
        "/chat/completions/input_tokens": _post(
            "Tokens of a chat's prompt", "ChatBody", _json(_object("input_tokens"), "how many"), error="LlamaError"
        ),
        **{
            path: _post("Continue a text, in llama-server's API", "LlamaBody", native, error="LlamaError")
            for path in ("/completion", "/completions")
        },
        "/infill": _post("Fill in a text, in llama-server's API", "InfillBody", native, error="LlamaError"),
        "/generate": _post("Continue a text, for the simplest clients", "GenerateBody", _json(generated, "the text")),
        "/tokenize": _post("Token ids of a text or a chat", ("TokenizeChatBody", "TokenizeTextBody"), tokens),
        "/detokenize": _post("Text of token ids", "DetokenizeBody", _json(_object("prompt", "content"), "the text")),
        "/apply-template": _post("The prompt that a chat makes", "ChatBody", _json(_object("prompt"), "its text")),
        "/responses": _post("OpenAI's newer API", "ResponsesBody", _streamed(response)),
        "/v1/responses": _post("OpenAI's newer API", "ResponsesBody", _streamed(response)),
        "/v1/messages": _post("Anthropic's API", "MessagesBody", _streamed(message), error="AnthropicError"),
        "/v1/messages/count_tokens": _post(
            "Tokens of a prompt, in Anthropic's API",
            "CountBody",
            _json(_object("input_tokens"), "how many"),
            error="AnthropicError",
        ),
        "/api/chat": _post("Answer a chat, in ollama's API", "OllamaChatBody", lines, error="OllamaError"),
        "/api/generate": _post("Answer a prompt, in ollama's API", "OllamaGenerateBody", lines, error="OllamaError"),
        "/api/show": _post(
            "Facts of a model, in ollama's API",
            "OllamaShowBody",
            _json(_object("details", "model_info", "capabilities"), "the facts"),
            error="OllamaError",
        ),
    }


def _looked_up() -> Json:
    model = _object("id", "object", "created", "owned_by", "context_length")
    models = _json(_object("models"), "a list")
    kept = _get("An answer that is kept", _json(_object("id", "output"), "the response"), "404", parameter="id")
    gone = _get("", _json(_object("id", "deleted"), "it is forgotten"), "404", parameter="id")["get"]
    return {
        "/models": _get("The models served here", _json(_object("object", "data"), "a list")),
        "/slots": _get("How many runs are under way, as llama-server tells it", _json(_ANY, "a list"), "501"),
        "/v1/models": _get("The models served here", _json(_object("object", "data"), "a list")),
        "/v1/models/{id}": _get("Facts of a model", _json(model, "the model"), "404", parameter="id"),
        "/v1/responses/{id}": {**kept, "delete": {**gone, "summary": "Forget an answer"}},
        "/props": _get(
            "Facts of the server, as llama-server tells them",
            _json(_object("default_generation_settings", "total_slots", "chat_template"), "the facts"),
        ),
        "/tokenizer_info": _get(
            "Special tokens and chat template, as vLLM tells them",
            _json(_object("bos_token", "eos_token", "chat_template"), "the facts"),
        ),
        "/v1/usage": _get("What your key has used", _json(_object(), "the account"), "404"),
        "/v1/receipts/{id}": _get("Receipt of a run", _json(_ANY, "the file"), "404", parameter="id"),
        "/api/verify/{id}": _get(
            "What verifying a receipt finds, claim by claim", _json(_ANY, "the verdict"), "404", parameter="id"
        ),
        "/api/tags": _get("The models, in ollama's API", models, error="OllamaError"),
        "/api/ps": _get("The models that are loaded, in ollama's API", models, error="OllamaError"),
        "/api/version": _get("Version of ollama's API", _json(_object("version"), "it"), error="OllamaError"),
        "/api/state": _get("What the dashboard shows", _json(_object("phase", "nodes", "runs"), "the state")),
        "/healthz": _get("Alive", _json(_object("status"), "yes")),
        "/health": _get("Alive", _json(_object("status"), "yes")),
        "/metrics": _get("For Prometheus", _plain("metrics", "text/plain")),
        "/openapi.json": _get("This document", _json(_object("openapi", "paths"), "the document")),
    }


def _missing() -> Json:
    """Addresses that clients know and that are refused by name."""
    refused = {path: "Error" for path in MISSING} | {f"/api/{name}": "OllamaError" for name in NOT_OLLAMA}
    return {
        path: {"post": {"summary": "Not offered", "responses": _refusals("401", "403", "501", error=error)}}
        for path, error in refused.items()
    }


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(*required: str) -> Json:
    return {"type": "object", "required": list(required)} if required else {"type": "object"}


def _answer() -> Json:
    usage = _object("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details")
    body = _object("id", "object", "created", "model", "choices", "usage", "wanswarm")
    body["properties"] = {
        "choices": {"type": "array", "items": _object("index", "finish_reason", "logprobs")},
        "usage": usage,
        "wanswarm": {**_object("runs"), "description": "run id, receipt address and speed of each run"},
    }
    return body


def _errors() -> Json:
    """An error, as each API tells it."""
    nullable = {"type": ["string", "null"]}
    openai = _object("message", "type", "param", "code")
    openai["properties"] = {"message": _TEXT, "type": _TEXT, "param": nullable, "code": nullable}
    anthropic = {**_object("type", "message"), "properties": {"type": _TEXT, "message": _TEXT}}
    llama = _object("message", "type", "code")
    llama["properties"] = {"message": _TEXT, "type": _TEXT, "param": nullable, "code": {"type": "integer"}}
    told = {"type": {"const": "error"}, "error": anthropic, "request_id": _TEXT}
    return {
        "Error": {**_object("error"), "properties": {"error": openai}},
        "AnthropicError": {**_object("type", "error", "request_id"), "properties": told},
        "LlamaError": {**_object("error"), "properties": {"error": llama}},
        "OllamaError": {**_object("error"), "properties": {"error": _TEXT}},
    }


def _json(schema: Json, description: str) -> Json:
    headers = {"x-request-id": {"schema": _TEXT}}
    return {"description": description, "headers": headers, "content": {"application/json": {"schema": schema}}}


def _streamed(answer: Json) -> Json:
    """An answer with receipts, that may come as server-sent events."""
    event = {"type": "object", "required": ["data"], "properties": {"data": _TEXT}}
    headers = {**answer["headers"], "x-receipt": {"schema": _TEXT, "description": "addresses of the receipts"}}
    return {**answer, "headers": headers, "content": {**answer["content"], "text/event-stream": {"schema": event}}}


def _refusals(*codes: str, error: str = "Error") -> Json:
    return {code: _json(_ref(error), _REFUSALS[code]) for code in codes}


def _post(summary: str, body: str | tuple[str, ...], answer: Json, error: str = "Error") -> Json:
    schema = _ref(body) if isinstance(body, str) else {"anyOf": [_ref(name) for name in body]}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {"200": answer, **_refusals(*_OF_POST, error=error)},
        }
    }


def _get(summary: str, answer: Json, *codes: str, parameter: str | None = None, error: str = "Error") -> Json:
    refusals = _refusals("401", "403", *codes, error=error)
    operation: Json = {"summary": summary, "responses": {"200": answer, **refusals}}
    if parameter is not None:
        operation["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": _TEXT}]
    return {"get": operation}


def _plain(description: str, kind: str) -> Json:
    return {"description": description, "content": {kind: {"schema": _TEXT}}}
