"""llama-server's own API: /completion, chats under its address, and what its clients ask besides.

Source: the server's page in llama.cpp's repository (tools/server/README.md), as vendored by llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from swarm.model.text.spelling import Spelling
from swarm.run.api import CommittedTokens, RunRequest, RunResult
from swarm.serve.answer import AnswerShape, Choice, run_facts
from swarm.serve.backend import Backend
from swarm.serve.body import read, wrong
from swarm.serve.compat.bodies import InfillBody, LlamaBody, LlamaPrompt
from swarm.serve.compat.shapes import llama_error
from swarm.serve.completions import Completions
from swarm.serve.config import GatewayConfig
from swarm.serve.errors import ApiError, bad_field
from swarm.serve.infill import File
from swarm.serve.logprobs import Entry
from swarm.serve.parse import (
    TextRequest,
    parse_chat_untrusted,
    parse_completion_untrusted,
    prefilled,
    stops_listed,
)
from swarm.serve.plan import filled_in
from swarm.serve.stream import EventStream
from swarm.serve.timings import timings
from swarm.serve.voice import Event, Json, OpenAIVoice
from swarm.serve.web import IGNORED, read_json

_SAME = (
    "model temperature top_k top_p min_p presence_penalty frequency_penalty seed stop stream ignore_eos json_schema "
    "grammar speculation draft receipt private_text min_tokens stop_token_ids timings_per_token return_progress"
).split()


class LlamaViews:
    """The handlers. `running`: how many runs hold the ring, in how many places."""

    def __init__(
        self, backend: Backend, config: GatewayConfig, completions: Completions, running: Callable[[], tuple[int, int]]
    ) -> None:
        self._backend, self._config, self._completions, self._running = backend, config, completions, running

    async def completion(self, request: web.Request) -> web.StreamResponse:
        """POST /completion and /completions: continue a text, or several."""
        asked = read(LlamaBody, stops_listed(await read_json(request, self._config)))
        prompts = await asyncio.to_thread(self._prompts, asked)
        parsed = parse_completion_untrusted(self._in_openais_words(asked, prompts), self._config)
        return await self._continue(request, asked, parsed)

    async def infill(self, request: web.Request) -> web.StreamResponse:
        """POST /infill: what stands between two texts."""
        asked = read(InfillBody, stops_listed(await read_json(request, self._config)))
        parsed = parse_completion_untrusted(self._in_openais_words(asked, [asked.input_prefix]), self._config)
        files = tuple(File(each.filename or "tmp", each.text) for each in asked.input_extra or ())
        parsed = filled_in(replace(parsed, files=files), asked.input_suffix, self._backend, "input_suffix")
        return await self._continue(request, asked, replace(parsed, prompts=(str(parsed.prompts[0]) + asked.prompt,)))

    async def _continue(self, request: web.Request, asked: LlamaBody, parsed: TextRequest) -> web.StreamResponse:
        wanted = parsed.wanted
        if asked.post_sampling_probs and not _unchanged(parsed):
            why = "probabilities are told of the model's own distribution; with temperature 1 alone it is what is drawn"
            raise bad_field("post_sampling_probs", f"'post_sampling_probs' is not supported here: {why}")
        parsed = replace(parsed, wanted=replace(wanted, fit=True, ignored=_not_read(asked)))
        request[IGNORED] = parsed.wanted.ignored

        def shaped(envelope: tuple[str, int, str], runs: Sequence[RunRequest], spelling: Spelling) -> LlamaShape:
            texts = [self._spelt(run.prompt_ids) for run in runs]
            told = [settings(run, parsed, self._ends() if run.ignore_eos else ()) for run in runs]
            kept = tuple(asked.response_fields or ())
            native = _Native(texts, told, kept, bool(asked.return_tokens), bool(asked.post_sampling_probs))
            return LlamaShape(*envelope, parsed.wanted, spelling, len(parsed.prompts), native=native)

        return await self._completions.continue_text(request, parsed, shaped, LlamaVoice())

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /chat/completions: as under /v1, but a last message of the assistant is gone on with."""
        body = prefilled(await read_json(request, self._config))
        messages = body.get("messages") if isinstance(body, dict) else None
        last = messages[-2:] if isinstance(messages, list) else []
        if [isinstance(each, dict) and each.get("role") for each in last] == ["assistant"] * 2:
            raise bad_field("messages", "expected at most one message of the assistant at the end, found two")
        parsed = parse_chat_untrusted(body, self._config)
        return await self._completions.converse(request, parsed, OpenAIVoice(parsed.wanted.include_usage))

    async def slots(self, request: web.Request) -> web.Response:
        """GET /slots: how many runs are on the ring, and nothing of what they are about."""
        if not self._config.slots:
            raise ApiError(501, "this gateway does not tell its slots", "not_implemented")
        running, places = self._running()
        context = self._backend.manifest.context
        return web.json_response(
            [
                {"id": place, "n_ctx": context, "speculative": True, "is_processing": place < running}
                for place in range(places)
            ]
        )

    def _prompts(self, asked: LlamaBody) -> list[Any]:
        """Texts and ids in their order; raises ApiError."""
        prompt = asked.prompt
        if isinstance(prompt, list) and not _one_sequence(prompt):
            return [self._prompt(item, f"prompt[{index}]") for index, item in enumerate(prompt)]
        return [self._prompt(prompt, "prompt")]

    def _prompt(self, item: Any, path: str) -> Any:
        if isinstance(item, LlamaPrompt):
            if item.multimodal_data:
                text = f"'{path}.multimodal_data' is not supported: the model reads text only"
                raise bad_field(f"{path}.multimodal_data", text, "unsupported_input")
            return item.prompt_string
        if isinstance(item, str):
            return item
        ids: list[int] = []
        for index, part in enumerate(item):
            if isinstance(part, int):
                ids.append(part)
            elif not isinstance(part, str):  # an object or a list beside token ids
                raise wrong(f"{path}[{index}]", "a text or a token id, as the others are", part)
            elif ids:  # what begins a prompt is added once
                ids += self._backend.tokenizer.encode(part, add_special_tokens=False)
            else:
                ids += self._backend.encode(part)
        return ids

    def _in_openais_words(self, asked: LlamaBody, prompts: list[Any]) -> Json:
        body = {name: value for name in _SAME if (value := getattr(asked, name)) is not None}
        wish = asked.n_predict if asked.n_predict is not None else asked.max_tokens
        wish = self._config.default_max_tokens if wish is None else wish
        body["max_tokens"] = self._backend.manifest.context if wish < 0 else wish
        if asked.repeat_penalty is not None:
            body["repetition_penalty"] = asked.repeat_penalty
        if asked.n_probs:
            body["logprobs"] = asked.n_probs
        if asked.seed is not None and asked.seed < 0:
            del body["seed"]
        if asked.logit_bias is not None:
            body["logit_bias"] = self._biases(asked.logit_bias)
        return {**body, "prompt": prompts}

    def _biases(self, value: Any) -> Any:
        """As ids: a text stands for each of its tokens."""
        if not isinstance(value, list | dict):
            return value
        pairs = list(value.items()) if isinstance(value, dict) else value
        found: list[Any] = []
        for pair in pairs:
            name = pair[0] if isinstance(pair, list | tuple) and len(pair) == 2 else None
            if isinstance(name, str) and not name.isdecimal():
                ids = self._backend.tokenizer.encode(name, add_special_tokens=False)
                found += [[int(token), pair[1]] for token in ids]
            elif isinstance(name, str):
                found.append([int(name), pair[1]])
            else:
                found.append(pair)
        return found

    def _ends(self) -> Sequence[int]:
        end = self._backend.tokenizer.eos_token_id
        return () if end is None else (int(end),)

    def _spelt(self, ids: Sequence[int]) -> str:
        told = self._backend.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(told)


def _one_sequence(prompt: list[Any]) -> bool:
    """Ids, or ids and texts mixed: one prompt. Texts alone are one each."""
    return any(isinstance(item, int) for item in prompt)


def _unchanged(parsed: TextRequest) -> bool:
    """Whether tokens are drawn from the model's own distribution."""
    wanted = parsed.wanted
    ratios = (wanted.temperature, wanted.top_p, wanted.top_k, wanted.min_p, wanted.repetition_penalty)
    return ratios == (1.0, 1.0, 0, 0.0, 1.0)


def _not_read(asked: LlamaBody) -> tuple[str, ...]:
    """Fields that say how llama-server is to work inside."""
    named = ("cache_prompt", "id_slot", "n_keep", "samplers", "n_cache_reuse")
    return tuple(name for name in named if getattr(asked, name) is not None)


def settings(run: RunRequest, parsed: TextRequest, banned: Sequence[int]) -> Json:
    """How a run is drawn, in llama-server's words. `banned`: end tokens that are gone past; null stands for -inf."""
    sampling, wanted = run.sampling, parsed.wanted
    shaping = sampling.shaping
    biases = [{"token": token, "bias": added} for token, added in (shaping.bias if shaping is not None else ())]
    return {
        "seed": sampling.seed,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "presence_penalty": shaping.presence if shaping is not None else 0.0,
        "frequency_penalty": shaping.frequency if shaping is not None else 0.0,
        "logit_bias": [*biases, *({"token": token, "bias": None} for token in banned)],
        "adaptive_target": -1.0,  # below 0: off
        "adaptive_decay": 0.0,
        "n_predict": run.max_tokens,
        "max_tokens": run.max_tokens,
        "n_probs": wanted.logprobs or 0,
        "ignore_eos": run.ignore_eos,
        "stop": list(run.stop),
        "stream": wanted.stream,
        "grammar": sampling.constraint.text if sampling.constraint is not None else "",
    }


@dataclass(frozen=True)
class _Native:
    """What answers of this API tell besides: prompts and settings by choice, and which fields are wanted."""

    prompts: Sequence[str]
    settings: Sequence[Json]
    fields: tuple[str, ...]
    tokens: bool
    probabilities: bool


@dataclass(frozen=True)
class LlamaShape(AnswerShape):
    """An answer of /completion, whole or in events."""

    native: _Native = field(default_factory=lambda: _Native((), (), (), False, False))
    chunk_kind = "completion"

    def opening(self, choice: Choice) -> list[Json]:
        return []

    def empty(self, choice: Choice) -> Json:
        counts = {"tokens_predicted": choice.written, "tokens_evaluated": choice.prompt}
        return {"index": choice.index, "content": "", "tokens": [], "stop": False, "id_slot": -1, **counts}

    def more(self, choice: Choice, event: CommittedTokens) -> list[Json]:
        text = self.heard(choice, event)
        told = choice.entries(event, text) if self.wanted.logprobs else []
        return self._say(choice, text, told, () if choice.silent else event.tokens)

    def _say(self, choice: Choice, text: str, told: Sequence[Entry], tokens: Sequence[int]) -> list[Json]:
        choice.text += text
        entries = [self._probability(entry) for entry in told]
        choice.logprobs += entries
        if not self.wanted.stream:
            return []
        head = self.empty(choice)
        if not entries:
            return [{**head, "content": text, "tokens": list(tokens)}] if text or tokens else []
        return [  # a token an event; the text that they add together stands in the first
            {**head, "content": "" if place else text, "tokens": [entry["id"]], "completion_probabilities": [entry]}
            for place, entry in enumerate(entries)
        ]

    def closing(self, choice: Choice) -> list[Json]:
        rest = self._say(choice, self.unsaid(choice), choice.last_entries(), ())
        return [*rest, self._whole(choice, stream=True)] if self.wanted.stream else []

    def whole(self, choices: Sequence[Choice]) -> Json:
        return self.envelope("completion", [self._whole(choice) for choice in choices])

    def _whole(self, choice: Choice, stream: bool = False) -> Json:
        result, place = choice.result, choice.index
        assert result is not None
        kind, word = _ending(result, self.wanted.stop, choice, self.spelling)
        context_full = choice.finish == "length" and self._cut(choice)
        shown: Json = {
            "index": place,
            "content": "" if stream else choice.text,
            "tokens": [] if stream or not self.native.tokens else list(result.token_ids[: choice.written]),
            "id_slot": -1,
            "stop": True,
            "model": self.model,
            "tokens_predicted": choice.written,
            "tokens_evaluated": choice.prompt,
            "generation_settings": self.native.settings[place],
            "prompt": self.native.prompts[place],
            "has_new_line": "\n" in choice.text,
            "truncated": context_full,
            "stop_type": kind,
            "stopping_word": word,
            "tokens_cached": result.cached_prompt_tokens,
            "timings": timings(result, choice.prompt, choice.written),
            "wanswarm": run_facts(result),
        }
        if choice.logprobs:
            shown["completion_probabilities"] = choice.logprobs
        return _picked(shown, self.native.fields)

    def _cut(self, choice: Choice) -> bool:
        """Whether the context ended the answer before the wish did."""
        return choice.written < (self.wanted.max_tokens or 0)

    def _probability(self, entry: Entry) -> Json:
        own, top = ("prob", "top_probs") if self.native.probabilities else ("logprob", "top_logprobs")

        def told(token: int, value: float | None, data: bytes) -> Json:
            shown = None if value is None else math.exp(value) if self.native.probabilities else value
            return {"id": token, "token": self.spelling.label(token), "bytes": list(data), own: shown}

        others = [told(token, value, self.spelling.bytes_of(token)) for token, value in entry.top]
        return {
            **told(entry.token, entry.logprob, entry.data),
            top: [each for each in others if not self.native.probabilities or each[own] > 0][: self.wanted.logprobs],
        }


def _ending(result: RunResult, stops: Sequence[str], choice: Choice, spelling: Spelling) -> tuple[str, str]:
    """Why an answer ended, and the stop string that did it."""
    if choice.finish != "stop":
        return "limit", ""
    written = b"".join(spelling.bytes_of(token) for token in result.token_ids).decode("utf-8", "replace")
    word = next((stop for stop in stops if stop in written), "")
    return ("word", word) if word else ("eos", "")


def _picked(body: Json, fields: Sequence[str]) -> Json:
    """The fields that were asked for, "generation_settings/seed" among them; none asked for: all."""
    if not fields:
        return body
    found: Json = {}
    for path in fields:
        value: Any = body
        for step in path.split("/"):
            value = value.get(step, ...) if isinstance(value, Mapping) else ...
        if value is not ...:
            found[path] = value
    return found


class LlamaVoice:
    """As /completion says it: the shape's own objects, and no [DONE]: the last one has `stop`."""

    def stream(self, request: web.Request, config: GatewayConfig) -> EventStream:
        return EventStream(request, config.write_timeout_s, config.keepalive_comment_s)

    def opening(self, runs: Sequence[RunRequest]) -> Sequence[Event]:
        return ()

    def chunk(self, chunk: Json) -> Sequence[Event]:
        return ((None, chunk),)

    def closing(self, results: Sequence[RunResult], usage: Json, last: Json) -> Sequence[Event]:
        return ()

    def failed(self, error: ApiError) -> Sequence[Event]:
        return ((None, llama_error(error)),)

    def whole(self, body: Json, results: Sequence[RunResult]) -> Any:
        answers = body["choices"]
        return answers[0] if len(answers) == 1 else answers
