"""POST /v1/chat/completions, /v1/completions and /generate: from body to runs to answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableSequence, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from aiohttp import web

from swarm import __version__
from swarm.base.errors import SwarmError
from swarm.model.shaping import Shaping
from swarm.model.text.spelling import Spelling
from swarm.run.api import CommittedTokens, Finished, PromptRead, RingOpened, RunEvent, RunRequest, RunResult
from swarm.serve.admission import RequestQueue
from swarm.serve.allowance import Allowances, Wanted
from swarm.serve.answer import AnswerShape, ChatShape, Choice, TextShape, receipt_address, run_facts, usage
from swarm.serve.backend import Backend
from swarm.serve.chat_prompt import NO_TOOLS_NOTE, takes_tools
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError, translate
from swarm.serve.logprobs import LogprobLedger
from swarm.serve.messages import instructed
from swarm.serve.metrics import GatewayMetrics
from swarm.serve.parse import (
    ChatRequest,
    TextRequest,
    parse_chat_untrusted,
    parse_completion_untrusted,
    parse_generate_untrusted,
)
from swarm.serve.plan import plan_chat, plan_text, public_tokens
from swarm.serve.run_registry import RunBook
from swarm.serve.thoughts import ThoughtWish, limit_of
from swarm.serve.timings import timings, timings_so_far
from swarm.serve.tools import Marks, ToolSplitter, schemas_of
from swarm.serve.voice import Event, OpenAIVoice, Voice
from swarm.serve.web import ALIAS_PROMPT, IGNORED, NOTE, REQUEST_ID, USER, read_json

Shaped = Callable[[tuple[str, int, str], Sequence[RunRequest], Spelling], AnswerShape]
"""Makes the shape of an answer: of its id, time and model, the runs and the vocabulary."""
OnEvent = Callable[[int, RunEvent], Awaitable[None]]


class Completions:
    """The handlers, and the one way in which they drive runs."""

    def __init__(
        self,
        backend: Backend,
        config: GatewayConfig,
        admission: RequestQueue,
        book: RunBook,
        metrics: GatewayMetrics,
        allowances: Allowances,
    ) -> None:
        self._backend = backend
        self._config = config
        self._admission = admission
        self._book = book
        self._metrics = metrics
        self._allowances = allowances
        self._spelt: Spelling | None = None
        self._marks: Marks | None = None

    async def chat(self, request: web.Request) -> web.StreamResponse:
        parsed = parse_chat_untrusted(await read_json(request, self._config), self._config)
        return await self.converse(request, parsed, OpenAIVoice(parsed.wanted.include_usage))

    async def converse(self, request: web.Request, parsed: ChatRequest, voice: Voice) -> web.StreamResponse:
        """Answer a chat in the words of `voice`."""
        request[IGNORED] = parsed.wanted.ignored
        prompt = request.get(ALIAS_PROMPT, "")
        parsed = replace(parsed, messages=instructed(parsed.messages, prompt))
        runs = await plan_chat(parsed, self._backend, self._config, request[USER])
        if prompt:
            public = await asyncio.to_thread(public_tokens, self._backend, self._config, prompt, runs[0].prompt_ids)
            runs = [replace(run, public=public) for run in runs]
        if parsed.tools and not takes_tools(getattr(self._backend.tokenizer, "chat_template", None)):
            request[NOTE] = NO_TOOLS_NOTE
        tools, spelling = schemas_of(parsed.tools), self._spelling()
        held = parsed.wanted.structure is not None  # then nothing is thought before the answer
        thinking = not held and await asyncio.to_thread(self._thinks, runs[0])
        if parsed.wanted.thought is not None and not held:
            runs = self._limited(runs, parsed.wanted.thought, thinking)
        show, none = parsed.wanted.show_special, parsed.wanted.max_tokens == 0
        marks = self._known_marks().bare() if held else self._known_marks()
        choices = [
            Choice(
                index,
                ToolSplitter(tools, marks, thinking),
                LogprobLedger(spelling, run.prompt_ids, show_special=show),
                prompt=len(run.prompt_ids),
                silent=none,
            )
            for index, run in enumerate(runs)
        ]
        mark = self._fingerprint()
        shape = ChatShape(*self._envelope(request, "chatcmpl-"), parsed.wanted, spelling, fingerprint=mark)
        return await self._respond(request, shape, runs, choices, voice)

    def _limited(self, runs: Sequence[RunRequest], wish: ThoughtWish, thinking: bool) -> list[RunRequest]:
        """The runs with a limit of their thoughts, where the model has any."""
        limit = limit_of(wish, self._known_marks(), self._backend.tokenizer, thinking)
        if limit is None:
            return list(runs)
        return [
            replace(
                run,
                sampling=replace(run.sampling, shaping=replace(run.sampling.shaping or Shaping(), thought=limit)),
            )
            for run in runs
        ]

    async def text(self, request: web.Request) -> web.StreamResponse:
        parsed = parse_completion_untrusted(await read_json(request, self._config), self._config)
        request[IGNORED] = parsed.wanted.ignored
        return await self._text(request, parsed)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        parsed = parse_generate_untrusted(await read_json(request, self._config), self._config)
        request[IGNORED] = parsed.wanted.ignored
        return await self._text(request, parsed)

    async def _text(self, request: web.Request, parsed: TextRequest) -> web.StreamResponse:
        if parsed.plain:
            return await self._respond_plain(
                request, parsed, await plan_text(parsed, self._backend, self._config, request[USER])
            )

        def shaped(envelope: tuple[str, int, str], runs: Sequence[RunRequest], spelling: Spelling) -> TextShape:
            return TextShape(*envelope, parsed.wanted, spelling, len(parsed.prompts), self._fingerprint())

        return await self.continue_text(request, parsed, shaped, OpenAIVoice(parsed.wanted.include_usage))

    async def continue_text(
        self, request: web.Request, parsed: TextRequest, shaped: Shaped, voice: Voice
    ) -> web.StreamResponse:
        """Continue prompts, and tell of it in the shape that `shaped` makes and the words of `voice`."""
        runs = await plan_text(parsed, self._backend, self._config, request[USER])
        choices: list[Choice] = []
        for index, run in enumerate(runs):
            echoed = ""
            if parsed.echo:
                prompt = parsed.prompts[index // parsed.wanted.n]
                whole = isinstance(prompt, str) and parsed.wanted.truncate is None
                echoed = str(prompt) if whole else self._backend.decode((*run.prompt_ids, *run.given))
            choices.append(self._text_choice(index, run, parsed, echoed))
        shape = shaped(self._envelope(request, "cmpl-"), runs, self._spelling())
        return await self._respond(request, shape, runs, choices, voice)

    def _text_choice(self, index: int, run: RunRequest, parsed: TextRequest, echoed: str) -> Choice:
        """Where the prompt is scored, its first token is the one that nothing was said of."""
        scored, show = parsed.echo and parsed.wanted.logprobs is not None, parsed.wanted.show_special
        before, offset = ((), 0) if scored else (run.prompt_ids, len(echoed))
        ledger = LogprobLedger(self._spelling(), before, offset, show)
        if scored:
            ledger.add(run.prompt_ids, [(None, ())] * len(run.prompt_ids))
            ledger.told(echoed)
        return Choice(
            index,
            ToolSplitter(),
            ledger,
            echoed,
            prompt=len(run.prompt_ids) + len(run.given),
            given=len(run.given),
            silent=parsed.wanted.max_tokens == 0 and not run.given,
        )

    def _envelope(self, request: web.Request, prefix: str) -> tuple[str, int, str]:
        return prefix + request[REQUEST_ID].removeprefix("req_"), int(time.time()), self._backend.manifest.model

    def _fingerprint(self) -> str:
        """What answers: this program and the model's weights, as `system_fingerprint` tells it."""
        return f"build-{__version__}-{self._backend.manifest.digest[:12]}"

    def _known_marks(self) -> Marks:
        """Of the model's template, read once."""
        if self._marks is None:
            template = getattr(self._backend.tokenizer, "chat_template", None)
            self._marks = Marks.of(template, self._spelling().special.values())
        return self._marks

    def _thinks(self, run: RunRequest) -> bool:
        """Whether the prompt ends within a thought, as templates of models do that always think."""
        marks = self._known_marks().thoughts
        if not marks:
            return False
        return self._spelt_out(run, 16).rstrip().endswith(tuple(opens for opens, _ in marks))

    def _spelt_out(self, run: RunRequest, last: int = 0) -> str:
        """The prompt, or so many tokens from its end, as text with its special tokens."""
        ids = run.prompt_ids[-last:]
        text = self._backend.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text)

    def _spelling(self) -> Spelling:
        """Of the model's vocabulary, read once."""
        if self._spelt is None:
            self._spelt = Spelling(self._backend.tokenizer)
        return self._spelt

    async def _respond(
        self,
        request: web.Request,
        shape: AnswerShape,
        runs: Sequence[RunRequest],
        choices: list[Choice],
        voice: Voice,
    ) -> web.StreamResponse:
        if shape.wanted.stream:
            return await self._stream(request, shape, runs, choices, voice)

        async def on_event(index: int, event: RunEvent) -> None:
            choice = choices[index]
            if isinstance(event, CommittedTokens):
                shape.more(choice, event)
            elif isinstance(event, Finished):
                choice.result = complete(event.result)
                shape.closing(choice)

        await self._drive(request, runs, on_event)
        results = _results(choices)
        body = shape.whole(choices)
        body["usage"] = usage(choices, shape.prompts)
        body["wanswarm"] = {"runs": [run_facts(result) for result in results]}
        body["timings"] = timings(results[0], choices[0].prompt, choices[0].written)
        if shape.wanted.verbose:
            body["__verbose"] = {"prompt": await asyncio.to_thread(self._spelt_out, runs[0])}
        return web.json_response(voice.whole(body, results), headers=_receipt_header(results))

    async def _respond_plain(
        self, request: web.Request, parsed: TextRequest, runs: Sequence[RunRequest]
    ) -> web.StreamResponse:
        """/generate: the text and the facts of the run, nothing else."""
        found: list[RunResult] = []

        async def on_event(index: int, event: RunEvent) -> None:
            if isinstance(event, Finished):
                found.append(complete(event.result))

        await self._drive(request, runs, on_event)
        result = found[0]
        none = parsed.wanted.max_tokens == 0  # the ring draws one all the same
        body = {
            "text": "" if none else result.text,
            "finish_reason": "length" if none else result.finish_reason,
            "prompt_tokens": len(result.prompt_token_ids),
            "new_tokens": 0 if none else result.new_tokens,
            **run_facts(result),
        }
        return web.json_response(body, headers=_receipt_header(found))

    async def _stream(
        self,
        request: web.Request,
        shape: AnswerShape,
        runs: Sequence[RunRequest],
        choices: list[Choice],
        voice: Voice,
    ) -> web.StreamResponse:
        stream = voice.stream(request, self._config)
        reads: dict[int, tuple[PromptRead, float]] = {}

        async def begin(headers: dict[str, str]) -> None:
            if stream.response is None:
                await stream.open(headers)
                await tell(voice.opening(runs))

        async def tell(events: Sequence[Event]) -> None:
            for name, data in events:
                await stream.send(data, name)

        async def on_event(index: int, event: RunEvent) -> None:
            choice = choices[index]
            chunks: list[dict[str, Any]] = []
            if isinstance(event, RingOpened):
                await begin({"x-receipt": receipt_address(event.run_id)} if shape.wanted.receipt else {})
                chunks = shape.opening(choice)
            elif isinstance(event, PromptRead):
                reads[index] = event, time.monotonic()
                chunks = [shape.progress(choice, event)] if shape.wanted.progress else []
            elif isinstance(event, CommittedTokens):
                chunks = shape.more(choice, event)
                if shape.wanted.pace and index in reads:
                    read, at = reads[index]
                    pace = timings_so_far(read, choice.prompt, choice.written, time.monotonic() - at)
                    chunks = [{**chunk, "timings": pace} for chunk in chunks]
            elif isinstance(event, Finished):
                await begin({})
                choice.result = complete(event.result)
                chunks = shape.closing(choice)
            for chunk in chunks:
                await tell(voice.chunk(chunk))

        async with stream:
            try:
                await self._drive(request, runs, on_event)
            except SwarmError as exc:
                if stream.response is None:
                    raise
                await tell(voice.failed(translate(exc)))
            else:
                results, last = _results(choices), shape.chunk(shape.chunk_kind, [])
                last["timings"] = timings(results[0], choices[0].prompt, choices[0].written)
                await tell(voice.closing(results, usage(choices, shape.prompts), last))
        assert stream.response is not None
        return stream.response

    async def _drive(self, request: web.Request, runs: Sequence[RunRequest], on_event: OnEvent) -> None:
        """Run all, each in its turn. The first failure, or the client leaving, cancels the others."""
        user = request[USER]
        self._allowances.begin(user, [_wanted(run) for run in runs], time.monotonic())
        spent: list[int | None] = [None] * len(runs)
        try:
            async with asyncio.TaskGroup() as group:
                for index, run in enumerate(runs):
                    group.create_task(self._one(request, index, run, on_event, spent))
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            for run, tokens in zip(runs, spent, strict=True):
                self._allowances.end(user, _wanted(run), tokens, time.monotonic())

    async def _one(
        self, request: web.Request, index: int, run: RunRequest, on_event: OnEvent, spent: MutableSequence[int | None]
    ) -> None:
        """One run; `spent[index]` becomes the number of its tokens, if it had any."""
        user = request[USER]
        run = replace(run, prefix=self._config.shares(user))
        prompt, most = len(run.prompt_ids) + len(run.given), run.max_tokens - len(run.given)
        note = self._book.begin(user, prompt, most, time.time(), request[REQUEST_ID])
        error = None
        try:
            async with self._admission.slot(user):
                note.state = "opening"
                # An async generator in practice; the protocol names only what iteration needs.
                async with aclosing(cast(Any, self._backend.run(run))) as events:
                    async for event in events:
                        self._book.apply(note, event, time.monotonic())
                        self._metrics.event(event)
                        await on_event(index, event)
            if note.result is None:
                raise ApiError(503, "the ring ended the run without a result; try again", "run_failed", retry_after=1)
        except SwarmError as exc:
            error = str(exc)
            raise
        finally:
            self._book.end(note, error)
            self._metrics.ended(note)
            if note.result is not None or note.tokens:
                spent[index] = note.tokens


def _wanted(run: RunRequest) -> Wanted:
    return Wanted(len(run.prompt_ids), run.max_tokens)


def complete(result: RunResult) -> RunResult:
    """Refuse to pass off as an answer what the swarm could not finish."""
    if result.finish_reason == "swarm_incomplete":
        raise ApiError(
            503,
            f"the swarm lost a part of the ring after {result.new_tokens} tokens and found no replacement; try again",
            "swarm_incomplete",
            retry_after=5,
        )
    return result


def _results(choices: Sequence[Choice]) -> list[RunResult]:
    return [choice.result for choice in choices if choice.result is not None]


def _receipt_header(results: Sequence[RunResult]) -> dict[str, str]:
    addresses = [receipt_address(result.run_id) for result in results if result.receipt]
    return {"x-receipt": ", ".join(addresses)} if addresses else {}


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first real error in a group of groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
