"""The gateway's OpenAPI description: kept by hand, as data, and held to the code by generated requests in the tests."""

from __future__ import annotations

from typing import Any

from swarm import __version__
from swarm.model.text.template import RESERVED
from swarm.run.api import DRAFTS, SPECULATIONS
from swarm.serve.config import GatewayConfig
from swarm.serve.messages import MAX_MESSAGES, MAX_OPTIONS, MAX_TOOLS
from swarm.serve.parse import MAX_STOP_CHARS, MAX_STOP_TOKENS, MAX_STOPS, MAX_TOP_LOGPROBS

Json = dict[str, Any]


def _nullable(kind: str, **rest: Any) -> Json:
    return {"type": [kind, "null"], **rest}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _limit() -> Json:
    return _nullable("integer", minimum=0, maximum=2**31 - 1, description="0: no token, only the prompt")


_TEXT: Json = {"type": "string"}
_OF_STOPS = ("stop_token_ids", "include_stop_str_in_output", "truncate_prompt_tokens")
_ANY: Json = {}


def _shared(config: GatewayConfig) -> Json:
    """Options of chat and text requests alike."""
    stop = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
    return {
        "model": _nullable("string", description="as in /v1/models; may be left out"),
        "max_tokens": _limit(),
        "temperature": _nullable("number", minimum=0, maximum=2, description="0 is greedy"),
        "top_p": _nullable("number", exclusiveMinimum=0, maximum=1),
        "top_k": _nullable("integer", minimum=-1, maximum=2**31 - 1, description="0 and -1 keep all"),
        "min_p": _nullable("number", minimum=0, maximum=1),
        "repetition_penalty": _nullable("number", exclusiveMinimum=0, maximum=10),
        "seed": _nullable("integer", minimum=-(2**63), maximum=2**63 - 1),
        "stop": {"anyOf": [stop, {"type": "array", "items": stop, "maxItems": MAX_STOPS}, {"type": "null"}]},
        "n": _nullable("integer", minimum=1, maximum=config.max_choices),
        "stream": _nullable("boolean"),
        "stream_options": {
            "type": ["object", "null"],
            "description": "needs stream",
            "properties": {
                "include_usage": _nullable("boolean"),
                "include_obfuscation": _nullable("boolean"),
                "continuous_usage_stats": _nullable("boolean"),
            },
            "additionalProperties": False,
        },
        "presence_penalty": _nullable("number", minimum=-2, maximum=2),
        "frequency_penalty": _nullable("number", minimum=-2, maximum=2),
        "logit_bias": {
            "description": "from token ids to what is added to their logits, -100 to 100; or an array of such pairs",
            "type": ["object", "array", "null"],
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "items": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": ["number", "boolean"]}]},
            "maxProperties": 8,
            "maxItems": 8,
        },
        "min_tokens": _nullable("integer", minimum=0, description="at most max_tokens: the answer ends no sooner"),
        "skip_special_tokens": _nullable("boolean", description="false shows them, but for one that ends the answer"),
        "spaces_between_special_tokens": _nullable("boolean", description="taken and not used"),
        "speculation": _nullable("string", enum=[*SPECULATIONS, None]),
        "draft": _nullable("string", enum=[*DRAFTS, None]),
        "receipt": _nullable("boolean", description="make a signed receipt of the run; true by default"),
        "private_text": _nullable("boolean", description="salted digests of the tokens in the receipt, not the tokens"),
        "stop_token_ids": {
            "type": ["array", "null"],
            "items": {"type": "integer"},
            "maxItems": MAX_STOP_TOKENS,
            "description": "end the answer, also with ignore_eos",
        },
        "include_stop_str_in_output": _nullable("boolean", description="show the stop string or token"),
        "truncate_prompt_tokens": _nullable(
            "integer", minimum=1, maximum=2**31 - 1, description="keep so many of the prompt's last tokens"
        ),
        "ignore_eos": _nullable("boolean", description="go on past end tokens"),
        **{
            name: {"description": "taken and not used"}
            for name in (
                "user",
                "metadata",
                "store",
                "service_tier",
                "parallel_tool_calls",
                "prompt_cache_key",
                "prompt_cache_retention",
                "safety_identifier",
                "verbosity",
            )
        },
    }


def _chat(config: GatewayConfig) -> Json:
    # Bounds that only guard memory are told in words: generated tests would build megabytes to cross them.
    most = f"at most {MAX_MESSAGES}"
    return {
        "type": "object",
        "required": ["messages"],
        "additionalProperties": not config.strict,
        "properties": {
            "messages": {"type": "array", "minItems": 1, "items": _ref("Message"), "description": most},
            **_shared(config),
            "max_completion_tokens": _limit(),
            "logprobs": _nullable("boolean"),
            "top_logprobs": _nullable("integer", minimum=0, maximum=MAX_TOP_LOGPROBS, description="needs logprobs"),
            "tools": {"type": ["array", "null"], "items": _ref("Tool"), "description": f"at most {MAX_TOOLS}"},
            "tool_choice": {
                "anyOf": [{"enum": ["none", "auto", "required", None]}, {"type": "object"}],
                "description": "required, or a named function: the answer is held to be a call",
            },
            **_structured(),
            "reasoning_effort": _nullable(
                "string", minLength=1, maxLength=64, description="told to the chat template; none: no thinking"
            ),
            "chat_template_kwargs": {
                "type": ["object", "null"],
                "description": "variables of the chat template, such as enable_thinking",
                "propertyNames": {"pattern": "^[A-Za-z][A-Za-z0-9_]*$", "not": {"enum": sorted(RESERVED)}},
                "maxProperties": MAX_OPTIONS,
            },
            "add_generation_prompt": _nullable("boolean", description="begin an answer; true by default"),
            "continue_final_message": _nullable(
                "boolean", description="go on within the last message; excludes add_generation_prompt"
            ),
            "modalities": {"type": ["array", "null"], "items": {"const": "text"}, "maxItems": 1},
            "prediction": {"description": "taken and not used"},
        },
    }


def _structured() -> Json:
    """What answers can be held to: one of these at most."""
    schema = {"type": ["object", "boolean", "string", "null"], "description": "a JSON Schema, or its text"}
    pattern = _nullable("string", description="a regular expression in Rust's syntax")
    grammar = _nullable("string", description="a grammar in GBNF or Lark")
    return {
        "response_format": {
            "type": ["object", "null"],
            "required": ["type"],
            "properties": {"type": {"enum": ["text", "json_object", "json_schema", "grammar"]}},
        },
        "structured_outputs": {
            "type": ["object", "null"],
            "properties": {"json": schema, "regex": pattern, "grammar": grammar, "choice": {"type": "array"}},
            "description": "as vLLM has it",
        },
        "json_schema": schema,
        "guided_json": schema,
        "regex": pattern,
        "guided_regex": pattern,
        "grammar": grammar,
        "ebnf": grammar,
        "guided_grammar": grammar,
        "guided_choice": {"type": ["array", "null"], "items": {"type": "string"}},
        "guided_decoding_backend": _nullable("string", description="taken and not used"),
        "guided_whitespace_pattern": {"type": "null"},
    }


def _completion(config: GatewayConfig) -> Json:
    ids = {"type": "array", "minItems": 1, "items": {"type": "integer"}}
    prompts = {"type": "array", "minItems": 1, "maxItems": config.max_choices, "items": {"anyOf": [_TEXT, ids]}}
    return {
        "type": "object",
        "required": ["prompt"],
        "additionalProperties": not config.strict,
        "properties": {
            "prompt": {"anyOf": [_TEXT, ids, prompts]},
            **_shared(config),
            "logprobs": _nullable("integer", minimum=0, maximum=MAX_TOP_LOGPROBS),
            **_structured(),
            "echo": _nullable(
                "boolean", description="put the prompt before the answer, with its log-probabilities where asked for"
            ),
            "best_of": _nullable("integer", minimum=1, maximum=config.max_choices, description="must equal n"),
            "suffix": _nullable("string", maxLength=0, description="not supported"),
        },
    }


def _generate(config: GatewayConfig) -> Json:
    shared = _shared(config)
    names = "model max_tokens temperature top_p top_k min_p repetition_penalty seed stop speculation draft receipt"
    return {
        "type": "object",
        "required": ["prompt"],
        "additionalProperties": not config.strict,
        "properties": {
            "prompt": _TEXT,
            **{name: shared[name] for name in [*names.split(), "private_text", "ignore_eos", *_OF_STOPS]},
        },
    }


def _tokenize(config: GatewayConfig) -> Json:
    chat = _chat(config)["properties"]
    names = "model messages tools tool_choice reasoning_effort chat_template_kwargs add_generation_prompt"
    of_chat = {name: chat[name] for name in [*names.split(), "continue_final_message"]}
    flags = {name: _nullable("boolean") for name in ("add_special_tokens", "add_special", "return_token_strs")}
    kinds: list[tuple[str, Json]] = [
        ("messages", {**of_chat, "return_token_strs": flags["return_token_strs"]}),
        *((name, {"model": chat["model"], name: _TEXT, **flags}) for name in ("prompt", "content")),
    ]
    return {
        "anyOf": [
            {"type": "object", "required": [name], "additionalProperties": False, "properties": properties}
            for name, properties in kinds
        ]
    }


def _detokenize() -> Json:
    return {
        "type": "object",
        "required": ["tokens"],
        "additionalProperties": False,
        "properties": {
            "model": _nullable("string"),
            "tokens": {"type": "array", "items": {"type": "integer"}},
        },
    }


def _role(role: str, required: list[str], **rest: Json) -> Json:
    return {
        "type": "object",
        "required": ["role", *required],
        "properties": {"role": {"const": role}, "name": _nullable("string"), **rest},
    }


def _message() -> Json:
    part = {"type": "object", "required": ["type", "text"], "properties": {"type": {"const": "text"}, "text": _TEXT}}
    content = {"anyOf": [_TEXT, {"type": "array", "items": part}]}
    function = {"type": "object", "required": ["name", "arguments"], "properties": {"name": _TEXT, "arguments": _TEXT}}
    call = {
        "type": "object",
        "required": ["function"],
        "properties": {"id": _nullable("string"), "type": {"enum": ["function", None]}, "function": function},
    }
    calls = {"type": ["array", "null"], "items": call}
    said = [_role(role, ["content"], content=content) for role in ("system", "developer", "user")]
    answer = _role("assistant", ["content"], content=content, tool_calls=calls)
    result = _role("tool", ["content", "tool_call_id"], content=content, tool_call_id=_TEXT)
    return {"anyOf": [*said, answer, result]}


def _tool() -> Json:
    properties = {
        "name": {"type": "string", "minLength": 1, "maxLength": 64},
        "description": _nullable("string"),
        "parameters": {"type": ["object", "null"], "description": "a JSON schema"},
    }
    function = {"type": "object", "required": ["name"], "properties": properties}
    return {
        "type": "object",
        "required": ["type", "function"],
        "properties": {"type": {"const": "function"}, "function": function},
    }


def _object(*required: str) -> Json:
    return {"type": "object", "required": list(required)}


def _answer() -> Json:
    usage = _object("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details")
    body = _object("id", "object", "created", "model", "choices", "usage", "wanswarm")
    body["properties"] = {
        "choices": {"type": "array", "items": _object("index", "finish_reason", "logprobs")},
        "usage": usage,
        "wanswarm": {**_object("runs"), "description": "run id, receipt address and speed of each run"},
    }
    return body


def _error() -> Json:
    properties = {
        "message": _TEXT,
        "type": _TEXT,
        "param": _nullable("string"),
        "code": _nullable("string"),
    }
    required = ["message", "type", "param", "code"]
    return {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "object", "required": required, "properties": properties}},
    }


def _json(schema: Json, description: str) -> Json:
    headers = {"x-request-id": {"schema": _TEXT}}
    return {"description": description, "headers": headers, "content": {"application/json": {"schema": schema}}}


_REFUSALS = {
    "400": "the request is wrong; `param` names the field",
    "401": "no known API key",
    "403": "a foreign web page, or a host name that is not ours",
    "404": "no such thing",
    "408": "the body came too slowly",
    "413": "the body is too large",
    "415": "not JSON",
    "429": "too many requests of yours are waiting; see Retry-After",
    "503": "the swarm is busy or incomplete; see Retry-After",
}


def _refusals(*codes: str) -> Json:
    return {code: _json(_ref("Error"), _REFUSALS[code]) for code in codes}


def _post(summary: str, schema: str, answer: Json) -> Json:
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(schema)}}},
            "responses": {"200": answer, **_refusals("400", "401", "403", "404", "408", "413", "415", "429", "503")},
        }
    }


def _get(summary: str, answer: Json, *codes: str, parameter: str | None = None) -> Json:
    operation: Json = {"summary": summary, "responses": {"200": answer, **_refusals("401", "403", *codes)}}
    if parameter is not None:
        operation["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": _TEXT}]
    return {"get": operation}


def _plain(description: str, kind: str) -> Json:
    return {"description": description, "content": {kind: {"schema": _TEXT}}}


def describe(config: GatewayConfig) -> Json:
    """OpenAPI 3.1 document for a gateway with these limits."""
    answer = _json(_ref("Answer"), "the answer; with stream: server-sent events of chunks, the last one [DONE]")
    answer["headers"]["x-receipt"] = {"schema": _TEXT, "description": "addresses of the receipts"}
    event = {"type": "object", "required": ["data"], "properties": {"data": _TEXT}}
    streamed = {**answer, "content": {**answer["content"], "text/event-stream": {"schema": event}}}
    model = _object("id", "object", "created", "owned_by", "context_length")
    return {
        "openapi": "3.1.0",
        "info": {"title": "wanswarm gateway", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": {
            "/v1/models": _get("The model served here", _json(_object("object", "data"), "a list of one")),
            "/v1/models/{id}": _get("Facts of a model", _json(model, "the model"), "404", parameter="id"),
            "/v1/chat/completions": _post("Answer a chat", "Chat", streamed),
            "/v1/completions": _post("Continue a text", "Completion", streamed),
            "/generate": _post("Continue a text, for the simplest clients", "Generate", _json(_GENERATED, "the text")),
            "/tokenize": _post(
                "Token ids of a text or a chat",
                "Tokenize",
                _json(_object("tokens", "count", "max_model_len"), "the ids"),
            ),
            "/detokenize": _post("Text of token ids", "Detokenize", _json(_object("prompt", "content"), "the text")),
            "/v1/receipts/{id}": _get("Receipt of a run", _json(_ANY, "the file"), "404", parameter="id"),
            "/api/verify/{id}": _get(
                "What verifying a receipt finds, claim by claim", _json(_ANY, "the verdict"), "404", parameter="id"
            ),
            "/api/state": _get("What the dashboard shows", _json(_object("phase", "nodes", "runs"), "the state")),
            "/healthz": _get("Alive", _json(_object("status"), "yes")),
            "/health": _get("Alive", _json(_object("status"), "yes")),
            "/metrics": _get("For Prometheus", _plain("metrics", "text/plain")),
            "/openapi.json": _get("This document", _json(_object("openapi", "paths"), "the document")),
        },
        "components": {
            "schemas": {
                "Chat": _chat(config),
                "Completion": _completion(config),
                "Generate": _generate(config),
                "Tokenize": _tokenize(config),
                "Detokenize": _detokenize(),
                "Message": _message(),
                "Tool": _tool(),
                "Answer": _answer(),
                "Error": _error(),
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        **({"security": [{"key": []}]} if config.api_keys else {}),
    }


_GENERATED = _object("text", "finish_reason", "prompt_tokens", "new_tokens", "run_id", "receipt", "tokens_per_second")
