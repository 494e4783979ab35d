"""Chat templates, rendered in processes of their own that are kept warm and ended when they take too much."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from swarm.base.errors import ModelError, UsageError
from swarm.base.linechild import LineChild
from swarm.model.text.template_child import CPU_S, OUTPUT_CHARS

if TYPE_CHECKING:
    from swarm.model.text.tokenizer import Tokenizer

WALL_S = 10.0
"""For one rendering, on a busy machine."""
PROCESSES = 4
"""At once: a request that makes a template slow does not hold up the others."""
_CHILD = "swarm.model.text.template_child", "renders chat templates"
RESERVED = frozenset(
    "messages conversations conversation tools documents chat_template tokenize add_generation_prompt "
    "continue_final_message return_dict return_assistant_tokens_mask tokenizer_kwargs padding truncation max_length "
    "return_tensors sanitize_control_tokens bos_token eos_token unk_token pad_token".split()
)
"""Names that no option of a template may have: they are given by the request itself or by the tokenizer."""


@dataclass(frozen=True)
class Turn:
    """How a prompt ends: with the header of a new answer, within the last message, or after it."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False


NEW_ANSWER = Turn()


@dataclass(frozen=True)
class TemplateOptions:
    """What a chat template is given beside messages: tools on offer, how the prompt ends, `variables` of its own."""

    tools: Sequence[Mapping[str, Any]] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    turn: Turn = NEW_ANSWER


PLAIN_CHAT = TemplateOptions()


class TemplateRenderer:
    """Renders chat templates. Bounded for each rendering: wall clock 10 s, processor 5 s, memory 256 MiB (where the
    system bounds address space), output 128 Ki characters beside four times the input. Thread-safe.

    A process starts by itself in a fresh interpreter (never by fork) when one is needed, and stays for the next.
    """

    def __init__(self, wall_s: float = WALL_S) -> None:
        self._wall_s = wall_s
        self._idle: list[LineChild] = []
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(PROCESSES)
        self._closed = False

    def warm(self) -> None:
        """Start a process, so that the first chat need not wait for it."""
        with self._places:
            self._give_back(self._take())

    def close(self) -> None:
        """End the processes that are idle; those at work end when they are done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for renderer in idle:
            renderer.end()

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        options: TemplateOptions = PLAIN_CHAT,
    ) -> tuple[int, ...]:
        """Token ids of a conversation.

        Raises UsageError when the template refuses the conversation or takes more than it may.
        """
        tools, turn = [dict(tool) for tool in options.tools] or None, options.turn
        if not messages:
            raise UsageError("expected at least one message for the chat template, found none")
        try:
            chosen = tokenizer.get_chat_template(None, tools)
        except ValueError as error:
            raise ModelError(f"this model's chat template cannot be chosen: {error}") from error
        text = self.render(
            {
                **tokenizer.special_tokens_map,
                **options.variables,
                "conversations": [[{k: v for k, v in message.items() if v is not None} for message in messages]],
                "tools": tools,
                "chat_template": chosen,
                "add_generation_prompt": turn.add_generation_prompt and not turn.continue_final_message,
                "continue_final_message": turn.continue_final_message,
            }
        )
        return tuple(int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"])

    def render(self, request: Mapping[str, Any]) -> str:
        """Arguments of transformers' `render_jinja_template` for one conversation; its text. Raises UsageError."""
        line = json.dumps(request, default=str).encode() + b"\n"
        with self._places:
            renderer = self._take()
            try:
                answer = renderer.ask(line, self._wall_s, 6 * (OUTPUT_CHARS + 4 * len(line)) + 4096)
            except BaseException:
                renderer.end()
                raise
            if answer is None:
                renderer.end()
                limit = f"{self._wall_s:g} s ({CPU_S} s of a processor)"
            else:
                self._give_back(renderer)
                limit = str(answer.get("limit", ""))
        if answer is not None and "text" in answer:
            return str(answer["text"])
        if answer is not None and "refused" in answer:
            raise UsageError(
                f"the chat template of this model refuses these messages: {answer['refused']}; it may take no system "
                "message, or another order of roles"
            )
        raise UsageError(
            f"the chat template of this model takes more than {limit} for these messages, and was stopped; use another "
            "copy of the model, or its raw text completion"
        )

    def _take(self) -> LineChild:
        with self._lock:
            while self._idle:
                renderer = self._idle.pop()
                if renderer.alive:
                    return renderer
                renderer.end()
        return LineChild(*_CHILD)

    def _give_back(self, renderer: LineChild) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(renderer)
                return
        renderer.end()
