"""Tool calls in what a model writes, found while it is still writing.

Three ways of writing them are known: between <tool_call> and </tool_call> (Qwen, Hermes, SmolLM), after
[TOOL_CALLS] (Mistral), and a bare JSON object as the whole answer (Llama 3). A call counts only when it names a
tool on offer; everything else is text and reaches the client unchanged. Where a mark is a special token of the model,
it is known by its id: the same letters in ordinary tokens are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swarm.run.api import Piece, Special

_OPEN, _CLOSE, _MISTRAL, _PYTHON = "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"
_MARKS = (_OPEN, _MISTRAL, _PYTHON)
# Marks that are special tokens stand in the held text as lone surrogates, which no model can write.
_STAND_INS = {_OPEN: "\ud800", _CLOSE: "\ud801", _MISTRAL: "\ud802", _PYTHON: "\ud803"}
_NOT_SHOWN = str.maketrans("", "", "".join(_STAND_INS.values()))


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is JSON text, as OpenAI's API has it."""

    name: str
    arguments: str


@dataclass
class ToolSplitter:
    """Splits an answer into text and calls.

    names     tools on offer; none: everything is text at once
    special   names of the model's special tokens
    """

    names: frozenset[str]
    special: frozenset[str] = frozenset()
    _held: str = ""
    _started: bool = False

    def __post_init__(self) -> None:
        self._mark = {mark: _STAND_INS[mark] if mark in self.special else mark for mark in _STAND_INS}
        self._begins = tuple(self._mark[mark] for mark in _MARKS)

    def feed(self, *pieces: Piece) -> tuple[str, list[ToolCall]]:
        """Text that is certainly text, and calls that are complete."""
        text = "".join(_STAND_INS.get(p.text, "") if isinstance(p, Special) else p for p in pieces)
        if not self.names:
            return text.translate(_NOT_SHOWN), []
        self._held += text
        out: list[str] = []
        calls: list[ToolCall] = []
        opening, closing = self._mark[_OPEN], self._mark[_CLOSE]
        while True:
            if not self._started and not self._held.strip():
                break
            if not self._started and self._held.lstrip()[0] == "{":
                break  # perhaps a bare call: wait for the whole answer
            mark, at = _first_mark(self._held, self._begins)
            if mark is None:
                keep = _partial_mark(self._held, self._begins)
                out.append(self._held[: len(self._held) - keep])
                self._held = self._held[len(self._held) - keep :]
                break
            if at:
                out.append(self._held[:at])
                self._held = self._held[at:]
            if mark != opening or closing not in self._held:
                break  # the rest belongs to the call; these two marks have no end but the answer's
            end = self._held.index(closing) + len(closing)
            piece, self._held = self._held[:end], self._held[end:]
            found = self._calls_in(piece.removeprefix(opening).removesuffix(closing))
            calls += found
            if not found:
                out.append(piece)
            self._started = True
        said = "".join(out)
        self._started = self._started or bool(said.strip())
        return said.translate(_NOT_SHOWN), calls

    def finish(self) -> tuple[str, list[ToolCall]]:
        """What was held back, once the answer is over."""
        held, self._held = self._held, ""
        body = held.strip()
        for mark in self._begins:
            body = body.removeprefix(mark)
        calls = self._calls_in(body) if held else []
        return ("", calls) if calls else (held.translate(_NOT_SHOWN), [])

    def _calls_in(self, text: str) -> list[ToolCall]:
        try:
            items = _items(text)
        except (ValueError, RecursionError, IndexError):
            return []
        calls = [_call(members) for members in items]
        found = [call for call in calls if call is not None and call.name in self.names]
        return found if len(found) == len(calls) else []


_JSON = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")
Members = dict[str, tuple[Any, str]]
"""Of an object: the value of each name, and how the model wrote it."""


def _items(text: str) -> list[Members | None]:
    """The objects of a JSON text: one, or a list of them; None for other values. Raises ValueError."""
    value = json.loads(text)
    at = _skip(text, 0)
    if not isinstance(value, list):
        return [_members(text, at)]
    items: list[Members | None] = []
    at = _skip(text, at + 1)
    while text[at] != "]":
        items.append(_members(text, at))
        at = _skip(text, _JSON.raw_decode(text, at)[1])
        at = _skip(text, at + 1) if text[at] == "," else at
    return items


def _members(text: str, at: int) -> Members | None:
    if text[at] != "{":
        return None
    found: Members = {}
    at = _skip(text, at + 1)
    while text[at] != "}":
        name, at = _JSON.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)
        value, end = _JSON.raw_decode(text, at)
        found[name] = value, text[at:end]
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at
    return found


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _call(members: Members | None) -> ToolCall | None:
    """Arguments stay as they were written: numbers and escapes survive no reading and writing again."""
    name, _ = (members or {}).get("name", (None, ""))
    if members is None or not isinstance(name, str):
        return None
    value, written = members.get("arguments") or members.get("parameters") or ({}, "{}")
    return ToolCall(name, value if isinstance(value, str) else written)


def _first_mark(text: str, marks: Sequence[str]) -> tuple[str | None, int]:
    found = [(text.index(mark), mark) for mark in marks if mark in text]
    return (min(found)[1], min(found)[0]) if found else (None, 0)


def _partial_mark(text: str, marks: Sequence[str]) -> int:
    """How many last characters could be the beginning of a mark."""
    longest = 0
    for mark in marks:
        for size in range(1, len(mark)):
            if text.endswith(mark[:size]):
                longest = max(longest, size)
    return longest


def tool_names(tools: Sequence[Any]) -> frozenset[str]:
    return frozenset(tool["function"]["name"] for tool in tools)
