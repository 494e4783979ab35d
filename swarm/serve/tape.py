"""Reading a text that is still being written: what is said so far, and steps that wait for more of it. Pure.

A reader is a generator over one tape: it takes characters from `rest`, says what it found with `say`, and yields where
it needs more. What it says depends on the text alone, never on how it was cut, because no step decides before it has
seen what it decides by.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

from swarm.base.errors import SwarmError

Kind = Literal["text", "thought", "call", "arguments"]
Reader = Generator[None, None, Any]
_BLANK = re.compile(r"\s*")
_SCALAR_END = re.compile(r"[\s,\]}:]")


class NotACallError(SwarmError):
    """What looked like the beginning of a call is none: it is text."""


@dataclass(frozen=True)
class Heard:
    """A part of an answer: text, a thought, the beginning of a call (`text`: its name), or some of its arguments."""

    kind: Kind
    text: str
    id: str = ""
    """Of a call, where the model gave it one."""


# Marks that are special tokens stand on the tape as their names between two lone surrogates, which no model can write:
# the same letters in ordinary tokens are not taken for them.
_BEGIN, _END = "\ud800", "\ud801"
_STAND_IN = re.compile(f"{_BEGIN}[^{_END}]*{_END}")


class Tape:
    """The text so far, and how far it was read. `special`: marks that are special tokens of the model."""

    def __init__(self, special: AbstractSet[str] = frozenset()) -> None:
        self._special = special
        self._text = ""
        self.at = 0
        self.ended = False
        self.calls = 0
        """How many were told."""
        self._heard: list[Heard] = []

    def written(self, mark: str) -> str:
        """How a mark stands on the tape."""
        return f"{_BEGIN}{mark}{_END}" if mark in self._special else mark

    def pass_over(self, mark: str) -> None:
        """Take a mark that comes next."""
        self.at += len(self.written(mark))

    @property
    def rest(self) -> str:
        return self._text[self.at :]

    def add(self, text: str) -> None:
        """More of ordinary tokens."""
        self._text += text

    def add_special(self, name: str) -> None:
        """A special token; one that is no mark is not shown."""
        if name in self._special:
            self._text += self.written(name)

    def before(self) -> str:
        """The character that was read last."""
        return self._text[self.at - 1 : self.at]

    def skip_blank(self) -> None:
        """Pass over the white space that is there."""
        found = _BLANK.match(self._text, self.at)
        self.at = found.end() if found else self.at

    def forget(self) -> None:
        """What was read will not be read again."""
        self._text, self.at = self.rest, 0

    def say(self, kind: Kind, text: str, name: str = "") -> None:
        """Tell of a part; `name`: a call's own id."""
        self.calls += kind == "call"
        self._heard.append(Heard(kind, text, name))

    def take(self) -> list[Heard]:
        """What was told since the last time, neighbours of one kind joined, without marks and empty parts."""
        joined: list[Heard] = []
        for part in self._heard:
            text = _STAND_IN.sub("", part.text)
            if joined and part.kind == joined[-1].kind != "call":
                joined[-1] = Heard(part.kind, joined[-1].text + text)
            elif text or part.kind == "call":
                joined.append(Heard(part.kind, text, part.id))
        self._heard = []
        return joined


def blank(tape: Tape) -> Reader:
    """Pass over white space."""
    while True:
        tape.skip_blank()
        if tape.rest or tape.ended:
            return
        yield


def ahead(tape: Tape, *options: str) -> Generator[None, None, str | None]:
    """Which of these comes next, the longest where several do; None for none of them. Nothing is taken."""
    longest = sorted(options, key=len, reverse=True)
    while True:
        rest = tape.rest
        for option in longest:
            if rest.startswith(tape.written(option)):
                return option
            if not tape.ended and tape.written(option).startswith(rest):
                break  # it may still become this one
        else:
            return None
        yield


def expect(tape: Tape, *options: str) -> Generator[None, None, str]:
    """Take the one of these that comes next. Raises NotACallError."""
    found = yield from ahead(tape, *options)
    if found is None:
        raise NotACallError("something else comes next")
    tape.pass_over(found)
    return found


def until(tape: Tape, marks: Sequence[str], tell: Callable[[str], None]) -> Generator[None, None, str | None]:
    """Tell what comes before the first of these marks; the mark itself is not taken. None: the text ended."""
    written = {tape.written(mark): mark for mark in marks}
    while True:
        rest = tape.rest
        held = len(rest) if tape.ended else len(rest) - partial(rest, tuple(written))
        found = min(((rest.index(mark), -len(mark), mark) for mark in written if mark in rest), default=None)
        # A longer mark may begin before the one that is found, or in its place, and not be all there yet.
        if found is not None and (found[0] < held or tape.ended):
            tell(rest[: found[0]])
            tape.at += found[0]
            return written[found[2]]
        tell(rest[:held])
        tape.at += held
        if tape.ended:
            return None
        yield


def collect(tape: Tape, *marks: str) -> Generator[None, None, tuple[str, str]]:
    """What comes before the first of these marks, and the mark, which is taken. Raises NotACallError without one."""
    parts: list[str] = []
    mark = yield from until(tape, marks, parts.append)
    if mark is None:
        raise NotACallError(f"expected {' or '.join(marks)}")
    tape.pass_over(mark)
    return "".join(parts), mark


def partial(text: str, marks: Sequence[str]) -> int:
    """How many last characters could be the beginning of a mark."""
    longest = 0
    for mark in marks:
        for size in range(min(len(mark) - 1, len(text)), longest, -1):
            if text.endswith(mark[:size]):
                longest = size
                break
    return longest


def json_value(tape: Tape, tell: Callable[[str], None]) -> Generator[None, None, bool]:
    """Tell a JSON value as it comes, letter for letter; whether it came to its end. Syntax within is not looked at."""
    yield from _some(tape)
    first = tape.rest[:1]
    if first not in ("{", "[", '"'):
        return (yield from _scalar(tape, tell))
    depth, quoted, escaped = 0, False, False
    while True:
        rest = tape.rest
        for place, char in enumerate(rest):
            if quoted:
                quoted, escaped = escaped or char != '"', not escaped and char == "\\"
            elif char == '"':
                quoted = True
            elif char in "{[":
                depth += 1
            elif char in "}]":
                depth -= 1
            if depth <= 0 and not quoted:
                tell(rest[: place + 1])
                tape.at += place + 1
                return True
        tell(rest)
        tape.at += len(rest)
        if tape.ended:
            return False
        yield


def _scalar(tape: Tape, tell: Callable[[str], None]) -> Generator[None, None, bool]:
    while True:
        rest = tape.rest
        found = _SCALAR_END.search(rest)
        end = found.start() if found else len(rest)
        tell(rest[:end])
        tape.at += end
        if found is not None or tape.ended:
            return found is not None
        yield


def _some(tape: Tape) -> Reader:
    while not tape.rest and not tape.ended:
        yield
