"""Answers that outlive the connection which asked for them: a page that is loaded again reads on where it was.

The page gives its answer a name that cannot be guessed, and asks with POST /api/answers/{name}. Whoever knows the name
(and has the same key) may follow it with GET /api/answers/{name}?after=N, N being the number of the last event that it
has, and stop it with DELETE. An answer that nobody follows for a while is stopped, as any other is at once.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace

from aiohttp import web
from aiohttp.typedefs import Handler

from swarm.base.errors import SwarmError
from swarm.serve.completions import Completions
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError, translate
from swarm.serve.parse import ChatRequest, parse_chat_untrusted
from swarm.serve.stream import EventStream
from swarm.serve.voice import OpenAIVoice
from swarm.serve.web import USER, read_json

ALONE_S = 60.0
"""How long an answer goes on while nobody follows it: a page loads again within that."""
KEPT = 64
MAX_BYTES = 32 << 20
"""Of all answers that are kept; the oldest that are over go first."""
_NAME = re.compile(r"[A-Za-z0-9]{16,64}")


class LastingAnswer:
    """One answer as events, from the first on; any number of pages may follow it."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.events: list[bytes] = []
        self.size = 0
        self.followers = 0
        self.task: asyncio.Task[None] | None = None
        self.ending: asyncio.TimerHandle | None = None
        self._news = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.task is not None and self.task.done()

    def add(self, event: bytes) -> None:
        """One more event, as it goes over the wire."""
        self.events.append(event)
        self.size += len(event)
        self.wake()

    def wake(self) -> None:
        """Let those who follow look again."""
        self._news.set()
        self._news = asyncio.Event()

    async def news(self) -> None:
        """Wait for something that was not there."""
        await self._news.wait()


class _Recorder(EventStream):
    """Writes into a LastingAnswer instead of a socket."""

    def __init__(self, request: web.Request, answer: LastingAnswer) -> None:
        super().__init__(request, 1.0, 1.0)
        self._answer = answer

    async def open(self, headers: object) -> None:
        self.response = web.StreamResponse()  # never sent: its presence says that the answer has begun

    async def _write(self, data: bytes) -> None:
        self._answer.add(data)

    async def __aexit__(self, *error: object) -> None:
        pass


class _LastingVoice(OpenAIVoice):
    """OpenAI's words, written down."""

    def __init__(self, answer: LastingAnswer) -> None:
        super().__init__(include_usage=True)
        self._answer = answer

    def stream(self, request: web.Request, config: GatewayConfig) -> EventStream:
        return _Recorder(request, self._answer)


class _Follower(EventStream):
    """Passes recorded events on, each with its number."""

    async def pass_on(self, number: int, event: bytes) -> None:
        """One event. Raises ConnectionError when the client is gone."""
        await self._write(b"id: %d\n%b" % (number, event))


class LastingAnswers:
    """The handlers, and the answers that are kept."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._held: OrderedDict[str, LastingAnswer] = OrderedDict()

    def asking(self, completions: Completions, config: GatewayConfig) -> Handler:
        """POST: begin an answer of this model's desk, and follow it. Where neither the page nor the model's makers name
        a temperature it is 0: OpenAI's 1 makes small models ramble."""
        if config.default_temperature is None and "temperature" not in config.model_sampling:
            config = replace(config, default_temperature=0.0)

        async def handle(request: web.Request) -> web.StreamResponse:
            name = request.match_info["name"]
            if not _NAME.fullmatch(name):
                raise ApiError(400, "expected a name of 16 to 64 letters and digits, found another", "bad_name", "name")
            if name in self._held:
                raise ApiError(409, "there is an answer of that name already; GET it", "answer_exists", "name")
            parsed = parse_chat_untrusted(await read_json(request, config), config)
            if not parsed.wanted.stream:
                raise ApiError(400, "expected stream to be true, found false", "not_streamed", "stream")
            answer = self._keep(name, request[USER])
            answer.task = asyncio.create_task(_record(completions, request, parsed, answer))
            answer.task.add_done_callback(lambda task: answer.wake())
            return await self._follow(request, answer, 0)

        return handle

    async def get(self, request: web.Request) -> web.StreamResponse:
        """GET: from the event after number `after` on."""
        given = request.query.get("after", "0")
        if not given.isascii() or not given.isdigit() or len(given) > 9:
            raise ApiError(400, f"expected after to be a number of events, found {given[:20]!r}", "bad_after", "after")
        return await self._follow(request, self._find(request), int(given))

    async def delete(self, request: web.Request) -> web.Response:
        """DELETE: stop it if it goes on; what was said stays."""
        answer = self._find(request)
        await _stop(answer)
        return web.json_response({"stopped": True, "events": len(answer.events)})

    async def close(self, app: web.Application) -> None:
        """Stop all that are under way."""
        for answer in self._held.values():
            if answer.ending is not None:
                answer.ending.cancel()
            await _stop(answer)

    def _find(self, request: web.Request) -> LastingAnswer:
        """Raises ApiError 404, also for somebody else's."""
        answer = self._held.get(request.match_info["name"])
        if answer is None or answer.user != request[USER]:
            raise ApiError(404, "this answer is not kept here any more; ask again", "answer_not_found", "name")
        return answer

    def _keep(self, name: str, user: str) -> LastingAnswer:
        """Room for one more. Raises ApiError 503 where all that are kept go on still."""
        while len(self._held) >= KEPT or sum(answer.size for answer in self._held.values()) > MAX_BYTES:
            over = next((name for name, answer in self._held.items() if answer.over), None)
            if over is None:
                text = f"expected fewer than {KEPT} answers under way, found as many; try again later"
                raise ApiError(503, text, "too_many_answers", retry_after=10)
            del self._held[over]
        answer = self._held[name] = LastingAnswer(user)
        return answer

    async def _follow(self, request: web.Request, answer: LastingAnswer, after: int) -> web.StreamResponse:
        stream = _Follower(request, self._config.write_timeout_s, self._config.keepalive_comment_s)
        answer.followers += 1
        if answer.ending is not None:
            answer.ending.cancel()
        try:
            async with stream:
                await stream.open({})
                while True:
                    while after < len(answer.events):
                        after += 1
                        await stream.pass_on(after, answer.events[after - 1])
                    if answer.over:
                        break
                    await answer.news()
        finally:
            answer.followers -= 1
            if not answer.followers and not answer.over:
                answer.ending = asyncio.get_running_loop().call_later(ALONE_S, _stop_if_alone, answer)
        assert stream.response is not None
        return stream.response


async def _record(completions: Completions, request: web.Request, parsed: ChatRequest, answer: LastingAnswer) -> None:
    """Drive the answer to its end; an error before it began is told as one after it."""
    voice = _LastingVoice(answer)
    recorder = voice.stream(request, GatewayConfig())
    try:
        await completions.converse(request, parsed, voice)
    except SwarmError as exc:
        for name, data in voice.failed(translate(exc)):
            await recorder.send(data, name)
    except asyncio.CancelledError:
        # Whoever comes back to it hears why it ends here, instead of waiting for more.
        for name, data in voice.failed(ApiError(503, "this answer was stopped; ask again", "stopped")):
            answer.add(recorder.encode(data, name))
        raise


def _stop_if_alone(answer: LastingAnswer) -> None:
    if not answer.followers and answer.task is not None:
        answer.task.cancel()


async def _stop(answer: LastingAnswer) -> None:
    if answer.task is not None and not answer.over:
        answer.task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait([answer.task])
