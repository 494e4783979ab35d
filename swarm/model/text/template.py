"""Chat templates, rendered in processes of their own that are kept warm and ended when they take too much."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from swarm.base.errors import ModelError, UsageError
from swarm.model.text.template_child import CPU_S, OUTPUT_CHARS

WALL_S = 10.0
"""For one rendering, on a busy machine."""
START_S = 60.0
PROCESSES = 4
"""At once: a request that makes a template slow does not hold up the others."""
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from swarm.model.text.template_child import main; main()"
)
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


class TemplateRenderer:
    """Renders chat templates. Bounded for each rendering: wall clock 10 s, processor 5 s, memory 256 MiB (where the
    system bounds address space), output 1 MiB of characters beside four times the input. Thread-safe.

    A process starts by itself in a fresh interpreter (never by fork) when one is needed, and stays for the next.
    """

    def __init__(self, wall_s: float = WALL_S) -> None:
        self._wall_s = wall_s
        self._idle: list[_Renderer] = []
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
        tokenizer: PreTrainedTokenizerBase,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        turn: Turn = NEW_ANSWER,
    ) -> tuple[int, ...]:
        """Token ids of a conversation. `options`: further variables of the template.

        Raises UsageError when the template refuses the conversation or takes more than it may.
        """
        tools = [dict(tool) for tool in tools] if tools else None
        if not messages:
            raise UsageError("expected at least one message for the chat template, found none")
        try:
            chosen = tokenizer.get_chat_template(None, tools)
        except ValueError as error:
            raise ModelError(f"this model's chat template cannot be chosen: {error}") from error
        text = self.render(
            {
                **tokenizer.special_tokens_map,
                **(options or {}),
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

    def _take(self) -> _Renderer:
        with self._lock:
            while self._idle:
                renderer = self._idle.pop()
                if renderer.alive:
                    return renderer
                renderer.end()
        return _Renderer()

    def _give_back(self, renderer: _Renderer) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(renderer)
                return
        renderer.end()


class _Renderer:
    """One process. Raises ModelError when it does not start."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for the parent
        )
        if self.ask(b"", START_S, 4096) is None:
            self.end()
            raise ModelError(f"the process that renders chat templates did not start: {sys.executable} -I; run doctor")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, line: bytes, wall_s: float, most: int) -> dict[str, Any] | None:
        """Its answer to one line; None when it did not give one in time, or too long a one."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        watch = threading.Timer(wall_s, self._process.kill)
        watch.daemon = True
        watch.start()
        try:
            stdin.write(line)
            stdin.flush()
            answer = stdout.readline(most)
            return dict(json.loads(answer)) if answer.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        finally:
            watch.cancel()

    def end(self) -> None:
        """Kill it. Safe to call twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass
