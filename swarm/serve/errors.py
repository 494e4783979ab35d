"""Errors in OpenAI's shape, so that existing clients understand them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarm.base.errors import BusyError, CoverageError, ModelError, PeerError, RunError, SwarmError, UsageError

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
}


class ApiError(SwarmError):
    """One refusal of the gateway.

    status       HTTP status
    code         short machine-readable name, e.g. "context_length_exceeded"
    param        the field at fault, e.g. "messages[2].role"
    retry_after  seconds after which trying again makes sense
    allow        the methods that work here, of a 405
    facts        numbers that some APIs tell beside the message
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        retry_after: int | None = None,
        allow: str | None = None,
        facts: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.allow = allow
        self.facts = facts or {}

    @property
    def kind(self) -> str:
        return _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> Mapping[str, str]:
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.allow is not None:
            headers["Allow"] = self.allow
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def bad_field(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """A 400 that names the field."""
    return ApiError(400, message, code, param)


def translate(error: SwarmError) -> ApiError:
    """What a client is told of an error from below."""
    text = str(error)
    match error:
        case ApiError():
            return error
        case UsageError():
            return ApiError(400, text, "invalid_value")
        case CoverageError():
            return ApiError(503, text, "swarm_incomplete", retry_after=5)
        case BusyError():
            return ApiError(503, text, "swarm_busy", retry_after=2)
        case RunError() | PeerError():
            return ApiError(503, text, "run_failed", retry_after=1)
        case ModelError():
            return ApiError(500, text, "model_error")
        case _:
            return ApiError(500, text, "internal_error")
