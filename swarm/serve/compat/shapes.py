"""What translations share: errors in the words of the API that was asked, refusals, and what answers have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from aiohttp import web

from swarm.serve.errors import ApiError, bad_field
from swarm.serve.parse import ChatRequest

Json = dict[str, Any]

OLLAMA_PATHS = frozenset(
    f"/api/{name}"
    for name in "chat generate tags show ps version embed embeddings pull push create copy delete".split()
)
NOT_OLLAMA = ("embed", "embeddings", "pull", "push", "create")
"""What ollama's clients know an address under /api for and this gateway has not."""
LLAMA_PATHS = frozenset(
    "/completion /completions /infill /chat/completions /chat/completions/input_tokens /slots".split()
)
MISSING = {
    "/v1/embeddings": "embeddings",
    "/embedding": "embeddings",
    "/embeddings": "embeddings",
    "/rerank": "rankings",
    "/reranking": "rankings",
    "/v1/rerank": "rankings",
    "/v1/images/generations": "images",
    "/v1/images/edits": "images",
    "/v1/audio/speech": "speech",
    "/v1/audio/transcriptions": "transcripts",
    "/v1/moderations": "moderations",
}
"""What OpenAI's clients know an address for and this gateway has not."""
_FORM = "response_format"
_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


async def missing(request: web.Request) -> web.Response:
    """Says by name what is not to be had."""
    what = MISSING[request.path]
    raise ApiError(501, f"{what} are not offered: this gateway serves one text model of a swarm", "not_implemented")


def error_body(path: str, error: ApiError, request_id: str) -> Json:
    """The body of an error on this path."""
    if path in OLLAMA_PATHS:
        return {"error": error.message}
    if path in LLAMA_PATHS:
        return llama_error(error)
    if path.startswith("/v1/messages"):
        return anthropic_error(error, request_id)
    return error.body()


def anthropic_error(error: ApiError, request_id: str) -> Json:
    """An error as Anthropic's API tells it."""
    kind = _ANTHROPIC_KINDS.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}


_LLAMA_KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


def llama_error(error: ApiError) -> Json:
    """An error as llama-server tells it."""
    kind = _LLAMA_KINDS.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    told: Json = {"code": error.status, "message": error.message, "type": kind, "param": error.param}
    if error.code == "context_length_exceeded":
        told |= {**error.facts, "type": "exceed_context_size_error"}
        told["message"] = "the request exceeds the available context size: " + error.message
    return {"error": told}


def no_pictures(path: str) -> ApiError:
    """The refusal of an image."""
    return bad_field(path, f"expected text in '{path}', found an image; the model reads text only", "unsupported_input")


def fitted(parsed: ChatRequest) -> ChatRequest:
    """A wish for more tokens than the context holds gets what fits, as these APIs have it."""
    return replace(parsed, wanted=replace(parsed.wanted, fit=True))


@contextmanager
def said_of(field: str) -> Iterator[None]:
    """What is found wrong with a form that was translated is said of the client's own field."""
    try:
        yield
    except ApiError as error:
        if error.param is None or not error.param.startswith(_FORM):
            raise
        named = field + ".type" if error.param == _FORM + ".type" else field
        raise ApiError(error.status, error.message.replace(error.param, named), error.code, named) from error


def asked_by(parsed: ChatRequest, field: str) -> ChatRequest:
    """The same of what is found wrong later."""
    structure = parsed.wanted.structure
    if structure is None or not structure.param.startswith(_FORM):
        return parsed
    return replace(parsed, wanted=replace(parsed.wanted, structure=replace(structure, param=field)))


def given(**values: Any) -> Json:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}
