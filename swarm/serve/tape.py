"""Reading a text that is still being written: what is said so far, and steps that wait for more of it. Pure.

A reader is a generator over one tape: it takes characters from `rest`, says what it found with `say`, and yields where
it needs more. What it says depends on the text alone, never on how it was cut, because no step decides before it has
seen what it decides by.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

from swarm.base.errors import SwarmError

Kind = Literal["text", "thought", "call", "arguments"]
Reader = Generator[None, None, Any]
_BLANK = re.compile(r"\s*")


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
STAND_IN = re.compile(f"{_BEGIN}[^{_END}]*{_END}")
_SCALAR_END = re.compile(f"[\\s,\\[\\]}}:<{_BEGIN}]")


class Tape:
    """The text so far, and how far it was read. `special`: marks that are special tokens of the model."""

    def __init__(self, special: AbstractSet[str] = frozenset()) -> None:
        self.special = special
        self._text = ""
        self.at = 0
        self.ended = False
        self.stops: tuple[str, ...] = ()
        """Marks that end the call that is being read, or begin another one."""
        self.calls = 0
        """How many were told."""
        self.settled = 0
        """Until where all that was read is told, or is marks; of use once a call was told."""
        self.unfinished = False
        """The arguments of the last call are not all told yet."""
        self._heard: list[Heard] = []

    def written(self, mark: str) -> str:
        """How a mark stands on the tape."""
        return f"{_BEGIN}{mark}{_END}" if mark in self.special else mark

    def pass_over(self, mark: str) -> None:
        """Take a mark that comes next."""
        self.at += len(self.written(mark))

    def take_over(self, mark: str) -> str:
        """Take a mark that comes next, for a part of what is said."""
        begin = self.at
        self.pass_over(mark)
        return self._text[begin : self.at]

    @property
    def rest(self) -> str:
        return self._text[self.at :]

    def add(self, text: str) -> None:
        """More of ordinary tokens."""
        self._text += text

    def add_special(self, name: str) -> None:
        """A special token; one that is no mark is not shown."""
        if name in self.special:
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
        self._text, self.at, self.settled = self.rest, 0, 0

    def say(self, kind: Kind, text: str, name: str = "") -> None:
        """Tell of a part; `name`: a call's own id."""
        self._heard.append(Heard(kind, text, name))
        if kind == "call":
            self.calls += 1
            self.settle(unfinished=True)

    def settle(self, unfinished: bool = False) -> None:
        """All that was read is told; `unfinished`: more of the call's arguments may come."""
        self.settled, self.unfinished = self.at, unfinished

    def take(self) -> list[Heard]:
        """What was told since the last time, neighbours of one kind joined, without marks and empty parts."""
        joined: list[Heard] = []
        for part in self._heard:
            text = STAND_IN.sub("", part.text)
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


def within(tape: Tape, most: int, *marks: str) -> Generator[None, None, tuple[str, str]]:
    """As `collect`, of so many characters at most: what is longer is no name, and text need not wait for its end."""
    written = tuple(tape.written(mark) for mark in marks)
    while True:
        rest = tape.rest
        if any(mark in rest[: most + len(mark)] for mark in written):
            return (yield from collect(tape, *marks))
        if tape.ended or len(rest) - partial(rest, written) > most:
            raise NotACallError(f"expected {' or '.join(marks)} after {most} characters at most")
        yield


def json_value(tape: Tape, tell: Callable[[str], None]) -> Generator[None, None, bool]:
    """Tell a JSON value as it comes, letter for letter; whether it came to its end. Syntax within is not looked at.

    A mark of the tape's `stops` ends the value too. Within a string it does so only if the value does not become JSON
    with it: where a model forgot to escape a quote, what it says after the call would else count as a string. Nothing
    is told from there on until that is known.
    """
    yield from _some(tape)
    if tape.rest[:1] not in ("{", "[", '"'):
        return (yield from _scalar(tape, tell))
    stops = tuple(tape.written(mark) for mark in tape.stops)
    before: list[str] = []
    depth, quoted, escaped, seen = 0, False, False, 0
    stop: int | None = None
    while True:
        rest = tape.rest
        known = len(rest) if tape.ended else len(rest) - partial(rest, stops)
        for place in range(seen, known):
            if stop is None and rest.startswith(stops, place):
                stop = place
                if not quoted:
                    return _told(tape, tell, place, False)
            char = rest[place]
            if quoted:
                quoted, escaped = escaped or char != '"', not escaped and char == "\\"
            elif char == '"':
                quoted = True
            elif char in "{[":
                depth += 1
            elif char in "}]":
                depth -= 1
            if depth <= 0 and not quoted:
                if stop is not None and not _is_json("".join(before) + rest[: place + 1]):
                    return _told(tape, tell, stop, False)
                return _told(tape, tell, place + 1, True)
        seen = known
        if stop is None:
            before.append(rest[:known])
            _told(tape, tell, known, False)
            seen = 0
        if tape.ended:
            return _told(tape, tell, stop or 0, False)
        yield


def _told(tape: Tape, tell: Callable[[str], None], size: int, whole: bool) -> bool:
    tell(tape.rest[:size])
    tape.at += size
    return whole


def _is_json(text: str) -> bool:
    try:
        json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


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
