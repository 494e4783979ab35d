"""In whose words an answer is given: OpenAI's own, or another API's made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from aiohttp import web

from swarm.run.api import RunRequest, RunResult
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError
from swarm.serve.stream import EventStream

Json = dict[str, Any]
Event = tuple[str | None, Any]
"""An event's name, if the API names its events, and its data."""


class Voice(Protocol):
    """Turns OpenAI's bodies and chunks into those of one API. One object for each request."""

    def stream(self, request: web.Request, config: GatewayConfig) -> EventStream:
        """What a streamed answer is written to."""

    def opening(self, runs: Sequence[RunRequest]) -> Sequence[Event]:
        """What is said before the first chunk."""

    def chunk(self, chunk: Json) -> Sequence[Event]:
        """One chunk of a chat or text completion."""

    def closing(self, results: Sequence[RunResult], usage: Json, last: Json) -> Sequence[Event]:
        """What is said after the last one. `last`: the envelope of a chunk without choices."""

    def failed(self, error: ApiError) -> Sequence[Event]:
        """An error after the status line went out."""

    def whole(self, body: Json, results: Sequence[RunResult]) -> Json:
        """An answer that is not streamed; `body` has `usage` already."""


class OpenAIVoice:
    """As OpenAI's API says it. `include_usage`: a last chunk tells the tokens."""

    def __init__(self, include_usage: bool = False) -> None:
        self._include_usage = include_usage

    def stream(self, request: web.Request, config: GatewayConfig) -> EventStream:
        return EventStream(request, config.write_timeout_s, config.keepalive_comment_s)

    def opening(self, runs: Sequence[RunRequest]) -> Sequence[Event]:
        return ()

    def chunk(self, chunk: Json) -> Sequence[Event]:
        return ((None, chunk),)

    def closing(self, results: Sequence[RunResult], usage: Json, last: Json) -> Sequence[Event]:
        told: list[Event] = [(None, {**last, "usage": usage})] if self._include_usage else []
        return [*told, (None, "[DONE]")]

    def failed(self, error: ApiError) -> Sequence[Event]:
        # The status line is out; an "error" event is how OpenAI's clients learn of it.
        return ((None, error.body()), (None, "[DONE]"))

    def whole(self, body: Json, results: Sequence[RunResult]) -> Json:
        return body


def delta_of(chunk: Json) -> Mapping[str, Any]:
    """The delta of a chat chunk with one choice."""
    choices = chunk["choices"]
    delta: Mapping[str, Any] = choices[0]["delta"] if choices else {}
    return delta
