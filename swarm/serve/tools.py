"""What a model writes, taken apart while it is still writing: text, thoughts, calls of tools.

Which marks count is read from the model's chat template (`Marks.of`). A call counts only when it names a tool on offer;
everything else is text and reaches the client unchanged, but for white space next to calls and thoughts. Where a mark
is a special token of the model, it is known by its id: the same letters in ordinary tokens are text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from swarm.run.api import Piece, Special
from swarm.serve.call_formats import ALWAYS, BARE_PYTHON, BY_TEMPLATE, CallFormat, Schemas, json_calls, pythonic
from swarm.serve.tape import STAND_IN, Heard, NotACallError, Reader, Tape, ahead, blank, until

THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<thought>", "</thought>"),
)
"""Marks around what a model thinks before it answers: Qwen, DeepSeek, GLM, Kimi and others; Magistral; Seed; Kimi-VL;
Command A; others."""
_CHANNEL, _MESSAGE, _START = "<|channel|>", "<|message|>", "<|start|>"
CHANNEL_OF_THOUGHTS, END_OF_CHANNEL = f"{_CHANNEL}analysis{_MESSAGE}", "<|end|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_HEADER = re.compile(
    r"<\|(?:start|channel|constrain)\|>|\bassistant\b|\b(?:analysis|commentary|final)\b|\bto=\S+|\b(?:json|code)\b"
)
"""What headers say; anything else in one is text."""
_INSIDE = (
    "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<|tool_call_begin|>", "<|tool_call_end|>",
    "<|tool_call_argument_begin|>", "[CALL_ID]", "[ARGS]", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
    "<|constrain|>", _CHANNEL, _MESSAGE, _START, *_ENDS,
)  # fmt: skip
ALL_MARKS = frozenset(
    [
        *(mark for form in (*ALWAYS, *BY_TEMPLATE) for mark in (form.opens, *form.closes)),
        *(mark for pair in THOUGHTS for mark in pair),
        *_INSIDE,
    ]
)


@dataclass(frozen=True)
class Marks:
    """Which marks of an answer count.

    formats   of calls
    thoughts  pairs around thoughts
    harmony   whether answers are in channels, as gpt-oss writes them
    python    whether calls may be written as Python, without a mark
    special   names of the model's special tokens
    short_ids whether calls have ids of nine letters and digits, and no other (Mistral)
    """

    formats: tuple[CallFormat, ...] = ALWAYS
    thoughts: tuple[tuple[str, str], ...] = ()
    harmony: bool = False
    python: bool = False
    special: frozenset[str] = frozenset()
    short_ids: bool = False

    @classmethod
    def of(cls, template: Any, special: Iterable[str] = ()) -> Marks:
        """Those of a model, by its chat template (one, or several by name) and its special tokens."""
        text = "\n".join(map(str, template.values())) if isinstance(template, dict) else str(template or "")
        known = frozenset(special) & ALL_MARKS
        return cls(
            formats=(*ALWAYS, *(form for form in BY_TEMPLATE if form.opens in text or form.opens in known)),
            thoughts=tuple(pair for pair in THOUGHTS if pair[1] in text or pair[1] in known),
            harmony=_CHANNEL in text and _MESSAGE in text,
            python=any(mark in text for mark in BARE_PYTHON),
            special=known,
            short_ids="length != 9" in text or "length == 9" in text,
        )

    def bare(self) -> Marks:
        """For answers that are held to a form: any mark in them is a part of it."""
        return Marks(formats=(), special=self.special, short_ids=self.short_ids)


@dataclass
class ToolCall:
    """`arguments` is JSON text, as OpenAI's API has it, so far as it was written; `id`: the model's own, if any."""

    name: str
    arguments: str = ""
    id: str = ""


@dataclass
class ToolSplitter:
    """Takes one answer apart.

    tools     those on offer, with the schemas of their arguments; none: no call is looked for
    marks     that count
    thinking  the prompt ended within a thought
    """

    tools: Schemas = field(default_factory=dict)
    marks: Marks = field(default_factory=Marks)
    thinking: bool = False
    cut: bool = False
    """The answer ended within a call."""

    def __post_init__(self) -> None:
        self._tape = Tape(self.marks.special)
        self._formats = {form.opens: form for form in self.marks.formats} if self.tools else {}
        self._thoughts = dict(self.marks.thoughts)
        self._plain = not self.tools and not self._thoughts and not self.marks.harmony
        self._reader = self._channels() if self.marks.harmony else self._answer()
        self._gap = ""
        """White space that is text only if text follows it."""
        self._behind: Literal["", "call", "thought"] = ""

    def feed(self, *pieces: Piece) -> list[Heard]:
        """What is certain now."""
        if self._plain:
            return [Heard("text", text)] if (text := "".join(p for p in pieces if isinstance(p, str))) else []
        for piece in pieces:
            if isinstance(piece, Special):
                self._tape.add_special(piece.text)
            else:
                self._tape.add(piece)
        next(self._reader, None)
        return self._tape.take()

    def finish(self) -> list[Heard]:
        """What was held back, once the answer is over."""
        self._tape.ended = True
        next(self._reader, None)
        return self._tape.take()

    def _say(self, text: str) -> None:
        """Text; white space right behind a call counts only if there is more, right behind a thought never."""
        if self._behind:
            text = self._gap + text
            if not text.strip():
                self._gap = text
                return
            text = text.lstrip() if self._behind == "thought" else text
            self._gap, self._behind = "", ""
        self._tape.say("text", text)

    def _answer(self) -> Reader:
        """Text with marks in it."""
        tape = self._tape
        if self.thinking and self._thoughts:
            yield from self._thought(tuple(self._thoughts.values()))
        yield from self._bare()
        while True:
            mark = yield from until(tape, [*self._formats, *self._thoughts], self._say)
            if mark is None:
                return
            tape.pass_over(mark)
            if mark in self._thoughts:
                yield from self._thought((self._thoughts[mark],))
                yield from self._bare()
            elif not (yield from self._call(self._formats[mark])):
                self._say(tape.written(mark))

    def _thought(self, closes: Sequence[str]) -> Reader:
        """Up to a closing mark, without the white space at either end."""
        tape, gap = self._tape, ""
        yield from blank(tape)

        def think(text: str) -> None:
            nonlocal gap
            whole = gap + text
            gap = whole[len(whole.rstrip()) :]
            tape.say("thought", whole.rstrip())

        mark = yield from until(tape, closes, think)
        if mark is not None:
            tape.pass_over(mark)
        self._gap, self._behind = "", "thought"
        tape.forget()

    def _bare(self) -> Reader:
        """A call that is the whole answer: JSON, or Python where the template says so."""
        tape, begin = self._tape, self._tape.at
        if not self.tools:
            return
        yield from blank(tape)
        first = yield from ahead(tape, "{", "[") if self.marks.python else ahead(tape, "{")
        form = CallFormat("", pythonic if first == "[" else json_calls)
        if first is None or not (yield from self._call(form)):
            tape.at = begin

    def _call(self, form: CallFormat) -> Generator[None, None, bool]:
        """Whether there was a call after its mark; if not, nothing is taken. What is odd behind a call is text."""
        tape, begin, calls = self._tape, self._tape.at, self._tape.calls
        tape.stops = form.stops
        try:
            yield from form.read(tape, self.tools)
        except NotACallError:
            if tape.calls == calls:
                tape.at = begin
                return False
            self.cut = tape.unfinished and tape.ended
            tape.at = tape.settled
        yield from self._closed(form)
        self._gap, self._behind = "", "call"
        tape.forget()
        return True

    def _closed(self, form: CallFormat) -> Reader:
        """Pass over a mark that closes calls, and over brackets too many before it."""
        tape, end = self._tape, self._tape.at
        yield from blank(tape)
        while form.closes and (yield from ahead(tape, "}", "]")) is not None:
            tape.at += 1
            yield from blank(tape)
        while form.closes and (found := (yield from ahead(tape, *form.closes, *form.ends))) is not None:
            tape.pass_over(found)
            end = tape.at
            if found in form.closes:
                break
            yield from blank(tape)
        tape.at = end

    def _channels(self) -> Reader:
        """Harmony: a header, <|message|>, and what is said in the channel or to the tool that the header names.

        Source: OpenAI's harmony response format.
        """
        tape = self._tape
        if (yield from ahead(tape, " to=")) is not None:
            yield from self._channel()
        while (yield from until(tape, (_CHANNEL, _START), self._say)) is not None:
            yield from self._channel()

    def _channel(self) -> Reader:
        """One message, from its header on. What else is in the header is text, and all of it without a message."""
        tape = self._tape
        parts: list[str] = []
        mark = yield from until(tape, (_MESSAGE, *_ENDS), parts.append)
        written = "".join(parts)
        if (odd := _HEADER.sub(" ", STAND_IN.sub(" ", written))).strip():
            self._say(written if mark != _MESSAGE else odd)
        if mark is not None:
            tape.pass_over(mark)
        if mark != _MESSAGE:
            return
        to = re.search(r"to=(?:functions\.)?([\w.-]+)", written)
        name = to.group(1) if to is not None else ""
        arguments = False

        def argue(text: str) -> None:
            nonlocal arguments
            arguments = arguments or bool(text.strip())
            if arguments:
                tape.say("arguments", text)

        tell: Callable[[str], None] = partial(tape.say, "thought") if "analysis" in written else self._say
        if name in self.tools:
            tape.say("call", name)
            tell = argue
        mark = yield from until(tape, (*_ENDS, _START), tell)
        if name in self.tools:
            self.cut = mark is None
            if not arguments:
                tape.say("arguments", "{}")
        if mark is not None and mark != _START:
            tape.pass_over(mark)
        tape.forget()


def schemas_of(tools: Sequence[Mapping[str, Any]]) -> Schemas:
    """Of tools as chat templates have them: the schema of the arguments by name."""
    return {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}


def short_id(name: str) -> str:
    """Nine letters and digits that stand for a call's id, always the same ones: Mistral's templates want no others."""
    if re.fullmatch("[A-Za-z0-9]{9}", name):
        return name
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:9]
