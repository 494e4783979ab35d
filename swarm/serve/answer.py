"""Answers in OpenAI's shapes, whole or in chunks, from the events of runs. Pure: no clock, no socket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from swarm.model.text.spelling import Spelling
from swarm.run.api import CommittedTokens, PromptRead, RunResult, Special
from swarm.serve.logprobs import Entry, LogprobLedger, chat_entry, text_entries
from swarm.serve.parse import GenerationRequest
from swarm.serve.tape import Heard
from swarm.serve.timings import progress, timings
from swarm.serve.tools import ToolCall, ToolSplitter, short_id


@dataclass
class Choice:
    """One answer being written. `text`: begins with the prompt where that is echoed.

    prompt  how many tokens it has, those of it that the ring gives back included
    given   how many these are: the answer's first tokens, told only for how likely they were
    silent  no token was wanted: the one that the ring draws all the same is not told
    """

    index: int
    splitter: ToolSplitter
    ledger: LogprobLedger
    text: str = ""
    thought: str = ""
    thinking_tokens: int = 0
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    result: RunResult | None = None
    prompt: int = 0
    given: int = 0
    silent: bool = False
    committed: int = 0
    unsaid: str = ""
    """A special token that is shown only if it does not end the answer."""

    @property
    def written(self) -> int:
        """Tokens of the answer so far."""
        return 0 if self.silent else max(0, self.committed - self.given)

    @property
    def finish(self) -> str | None:
        if self.result is None:
            return None
        if self.silent:
            return "length"
        cut = self.splitter.cut and self.result.finish_reason == "length"
        return "tool_calls" if self.calls and not cut else self.result.finish_reason

    def heard(self, event: CommittedTokens) -> str:
        """The text that an event adds, special tokens left out."""
        self.committed += len(event.tokens)
        return "" if self.silent else event.text

    def heard_all(self, event: CommittedTokens) -> str:
        """The text that an event adds with its special tokens, but for one that might end the answer."""
        self.committed += len(event.tokens)
        if self.silent or not (event.tokens or event.text or event.pieces):
            return ""
        pieces = event.pieces or (event.text,)
        last = pieces[-1].text if isinstance(pieces[-1], Special) else ""
        shown = pieces[:-1] if last else pieces
        told, self.unsaid = self.unsaid, last
        return told + "".join(piece.text if isinstance(piece, Special) else piece for piece in shown)

    def entries(self, event: CommittedTokens, text: str | None = None) -> list[Entry]:
        """Log-probabilities that may be told with this event's text."""
        if self.silent:
            return []
        self.ledger.add(event.tokens, event.logprobs)
        return self.ledger.release(event.text if text is None else text)

    def last_entries(self) -> list[Entry]:
        """Those that no text comes for any more."""
        return self.ledger.finish(cut=self.result is not None and self.result.finish_reason == "stop")


def run_facts(result: RunResult) -> dict[str, Any]:
    """What only a swarm can tell; our own field beside OpenAI's."""
    return {
        "run_id": result.run_id,
        "receipt": receipt_address(result.run_id) if result.receipt else None,
        "seconds": round(result.seconds, 4),
        "ttft_seconds": round(result.ttft_seconds, 4),
        "tokens_per_second": round(result.tokens_per_second, 3),
        "passes": result.passes,
        "tokens_per_pass": round(result.tokens_per_pass, 3),
        "acceptance": round(result.acceptance, 4),
        "recoveries": result.recoveries,
        **({"held_to": result.held_to} if result.held_to else {}),
        **({"receipt_unwritten": True} if result.receipt_unwritten else {}),
    }


def receipt_address(run_id: str) -> str:
    return f"/v1/receipts/{run_id}"


def usage(choices: Sequence[Choice], prompts: int) -> dict[str, Any]:
    """Tokens of a request. Choices of one prompt share it, so it counts once. `prompts`: how many there were."""
    firsts = choices[:: max(1, len(choices) // prompts)][:prompts]
    cached = sum(choice.result.cached_prompt_tokens for choice in firsts if choice.result is not None)
    counted = _counted(sum(choice.prompt for choice in firsts), sum(choice.written for choice in choices), cached)
    thinking = sum(choice.thinking_tokens for choice in choices)
    return {**counted, "completion_tokens_details": {"reasoning_tokens": thinking}} if thinking else counted


def _counted(read: int, written: int, cached: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


@dataclass(frozen=True)
class AnswerShape:
    """What the bodies of one request share. `spelling`: of single tokens."""

    id: str
    created: int
    model: str
    wanted: GenerationRequest
    spelling: Spelling
    prompts: int = 1
    fingerprint: str | None = None

    def envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        body = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        return {**body, "system_fingerprint": self.fingerprint}

    def chunk(self, kind: str, choices: list[dict[str, Any]], told: Choice | None = None) -> dict[str, Any]:
        """`told`: the choice that the chunk is about."""
        body = self.envelope(kind, choices)
        if not self.wanted.include_usage:
            return body
        so_far = _counted(told.prompt, told.written) if told is not None and self.wanted.usage_so_far else None
        return {**body, "usage": so_far}

    chunk_kind = ""
    """What a chunk says that it is."""

    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        """Chunks before the first token."""
        raise NotImplementedError

    def empty(self, choice: Choice) -> dict[str, Any]:
        """A chunk that adds nothing."""
        raise NotImplementedError

    def progress(self, choice: Choice, read: PromptRead) -> dict[str, Any]:
        """A chunk that tells how much of the prompt is read."""
        return {**self.empty(choice), "prompt_progress": progress(read)}

    def more(self, choice: Choice, event: CommittedTokens) -> list[dict[str, Any]]:
        """Chunks that tell of new tokens."""
        raise NotImplementedError

    def closing(self, choice: Choice) -> list[dict[str, Any]]:
        """Chunks once the run is over."""
        raise NotImplementedError

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        raise NotImplementedError

    def heard(self, choice: Choice, event: CommittedTokens) -> str:
        """The text that an event adds."""
        return choice.heard_all(event) if self.wanted.show_special else choice.heard(event)

    def unsaid(self, choice: Choice) -> str:
        """What was held back and is text after all, now that the answer is over."""
        return "" if choice.result is not None and choice.result.finish_reason == "stop" else choice.unsaid


class ChatShape(AnswerShape):
    """chat.completion and chat.completion.chunk."""

    chunk_kind = "chat.completion.chunk"

    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        return [self._delta(choice, {"role": "assistant", "content": None})]

    def empty(self, choice: Choice) -> dict[str, Any]:
        return self._delta(choice, {})

    def more(self, choice: Choice, event: CommittedTokens) -> list[dict[str, Any]]:
        shown = self.heard(choice, event)
        pieces = (shown,) if self.wanted.show_special or choice.silent else (event.pieces or (event.text,))
        parts = choice.splitter.feed(*pieces)
        if parts and all(part.kind == "thought" for part in parts):
            choice.thinking_tokens += len(event.tokens)
        return self._say(choice, parts, choice.entries(event, shown))

    def closing(self, choice: Choice) -> list[dict[str, Any]]:
        rest = self.unsaid(choice)
        parts = [*(choice.splitter.feed(rest) if rest else ()), *choice.splitter.finish()]
        chunks = self._say(choice, parts, choice.last_entries())
        last = self._delta(choice, {}, choice.finish)
        if choice.result is not None:
            last["wanswarm"] = run_facts(choice.result)
            last["timings"] = timings(choice.result, choice.prompt, choice.written)
        return [*chunks, last]

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        items = []
        for choice in choices:
            message: dict[str, Any] = {"role": "assistant", "content": choice.text or None, "refusal": None}
            if choice.thought:
                message["reasoning_content"] = choice.thought
            if choice.calls:
                message["tool_calls"] = [
                    self._call(choice, place, call.arguments) for place, call in enumerate(choice.calls)
                ]
            else:
                message["content"] = choice.text
            logprobs = {"content": choice.logprobs, "refusal": None} if self.wanted.logprobs is not None else None
            items.append(
                {"index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}
            )
        return self.envelope("chat.completion", items)

    def _say(self, choice: Choice, parts: Sequence[Heard], told: list[Entry]) -> list[dict[str, Any]]:
        most = self.wanted.logprobs
        entries = [] if most is None else [chat_entry(entry, self.spelling, most) for entry in told]
        choice.logprobs += entries
        deltas = [self._part(choice, part) for part in parts]
        if entries and not deltas:
            deltas = [{"content": ""}]
        chunks = [self._delta(choice, delta) for delta in deltas]
        if entries:
            chunks[0]["choices"][0]["logprobs"] = {"content": entries, "refusal": None}
        return chunks

    def _part(self, choice: Choice, part: Heard) -> dict[str, Any]:
        """The delta that tells of a part; the choice keeps it."""
        if part.kind == "text":
            choice.text += part.text
            return {"content": part.text}
        if part.kind == "thought":
            choice.thought += part.text
            return {"reasoning_content": part.text}
        if part.kind == "call":
            choice.calls.append(ToolCall(part.text, id=part.id))
            place = len(choice.calls) - 1
            return {"tool_calls": [{"index": place, **self._call(choice, place, "")}]}
        choice.calls[-1].arguments += part.text
        return {"tool_calls": [{"index": len(choice.calls) - 1, "function": {"arguments": part.text}}]}

    def _delta(self, choice: Choice, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        item = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self.chunk(self.chunk_kind, [item], choice)

    def _call(self, choice: Choice, place: int, arguments: str) -> dict[str, Any]:
        call, written = choice.calls[place], f"{self.id.removeprefix('chatcmpl-')}_{choice.index}_{place}"
        name = call.id or (short_id(written) if choice.splitter.marks.short_ids else f"call_{written}")
        return {"id": name, "type": "function", "function": {"name": call.name, "arguments": arguments}}


class TextShape(AnswerShape):
    """text_completion, whole or in chunks. `prompts_text`: put before the answer when echo was asked for."""

    chunk_kind = "text_completion"

    def opening(self, choice: Choice) -> list[dict[str, Any]]:
        return [self._chunk(choice, choice.text, None)] if choice.text else []

    def empty(self, choice: Choice) -> dict[str, Any]:
        return self._chunk(choice, "", None)

    def more(self, choice: Choice, event: CommittedTokens) -> list[dict[str, Any]]:
        text = self.heard(choice, event)
        return self._say(choice, text, choice.entries(event, text))

    def closing(self, choice: Choice) -> list[dict[str, Any]]:
        chunks = self._say(choice, self.unsaid(choice), choice.last_entries())
        last = self._chunk(choice, "", None, choice.finish)
        if choice.result is not None:
            last["wanswarm"] = run_facts(choice.result)
            last["timings"] = timings(choice.result, choice.prompt, choice.written)
        return [*chunks, last]

    def _say(self, choice: Choice, text: str, told: list[Entry]) -> list[dict[str, Any]]:
        most = self.wanted.logprobs
        logprobs = text_entries(told, self.spelling, most) if told and most is not None else None
        choice.text += text
        if logprobs is not None:
            choice.logprobs.append(logprobs)
        return [self._chunk(choice, text, logprobs)] if text or logprobs else []

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        return self.envelope(
            "text_completion",
            [self._item(c, c.text, _joined(c.logprobs) if c.logprobs else None, c.finish) for c in choices],
        )

    def _chunk(self, choice: Choice, text: str, logprobs: Any, finish: str | None = None) -> dict[str, Any]:
        return self.chunk(self.chunk_kind, [self._item(choice, text, logprobs, finish)], choice)

    @staticmethod
    def _item(choice: Choice, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _joined(parts: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    return {name: [item for part in parts for item in part[name]] for name in parts[0]}
