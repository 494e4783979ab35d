"""Arrays whose items must be different ones (`uniqueItems`), held to beside the engine, which has no such rule.

An answer so far is walked byte by byte through its schema's places (`distinct_places`). What may come next is what the
engine allows, without each token that would complete an item which is there already, or after which none but such
could follow. Nothing here leads to a dead end: of each beginning of an item more must be left than were used.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swarm.model.distinct_places import SetPlace

_VALUE, _AFTER, _NAME, _IN_NAME, _COLON, _STRING, _SCALAR = range(7)
_SPACE, _STOPS = frozenset(b" \t\r\n"), frozenset(b" \t\r\n,]}")
_QUOTE, _ESCAPE = 0x22, 0x5C


class Spelt:
    """The tokens of a vocabulary as bytes, in the orders in which they are looked for."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.bytes = tokens
        order = sorted(range(len(tokens)), key=lambda token: tokens[token])
        self._order, self._sorted = order, [tokens[token] for token in order]
        self.openers = _bits(b"," in text.partition(b"[")[2] for text in tokens)
        self.two_quotes = _bits(text.count(b'"') > 1 for text in tokens)
        self.ends = self.two_quotes | _bits(not _STOPS.isdisjoint(text) for text in tokens)
        self.marks = self.ends | _bits(b'"' in text for text in tokens)

    def beginning(self, text: bytes) -> list[int]:
        """Tokens that begin with a text."""
        return self._order[bisect_left(self._sorted, text) : bisect_left(self._sorted, text + b"\xff" * 4)]

    def within(self, text: bytes) -> list[int]:
        """Tokens that a text begins with."""
        found: list[int] = []
        for size in range(1, len(text) + 1):
            begins = bisect_left(self._sorted, text[:size])
            while begins < len(self._sorted) and self._sorted[begins] == text[:size]:
                found.append(self._order[begins])
                begins += 1
        return found


def _bits(chosen: Iterable[bool]) -> NDArray[np.uint8]:
    return np.packbits(np.fromiter(chosen, np.bool_), bitorder="little")


class Walk:
    """An answer so far. `feed` goes on; `copy` branches."""

    __slots__ = ("_begun", "_escaped", "_frame", "_mode", "_next", "_seen", "_unique")

    def __init__(self, place: SetPlace | None) -> None:
        self._mode, self._next = _VALUE, place
        """`_next`: the place of the value that comes or is there."""
        self._frame: Any = None
        """Of the innermost array or object: (whether an array, its place, index, items seen, the frame around it)."""
        self._seen: list[bytes] = []
        self._unique = False
        """Whether the innermost is such an array."""
        self._begun: bytes | None = None
        """Of an item of such an array, or of a member's name that matters."""
        self._escaped = False

    def copy(self) -> Walk:
        """Another one at the same point."""
        made = Walk.__new__(Walk)
        made._mode, made._next, made._frame, made._seen = self._mode, self._next, self._frame, self._seen
        made._unique, made._begun, made._escaped = self._unique, self._begun, self._escaped
        return made

    def goes_on(self, data: bytes) -> bool:
        """Feed so many bytes more, of JSON. Whether a document may still come of it."""
        return self._feed(data) and self._alive()

    def _feed(self, data: bytes) -> bool:
        for byte in data:
            mode = self._mode
            if mode == _STRING or mode == _IN_NAME:
                if not self._letter(byte):
                    return False
                continue
            if mode == _SCALAR:
                if byte not in _STOPS:
                    if self._begun is not None:
                        self._begun += bytes((byte,))
                    continue
                if not self._ended():
                    return False
            if byte not in _SPACE:
                self._mark(byte)
        return True

    def _letter(self, byte: int) -> bool:
        if self._begun is not None:
            self._begun += bytes((byte,))
        if self._escaped:
            self._escaped = False
        elif byte == _ESCAPE:
            self._escaped = True
        elif byte == _QUOTE:
            if self._mode == _STRING:
                return self._ended()
            place = self._frame[1]
            name = None if self._begun is None else _name(self._begun)
            self._next = None if place is None or name is None else place.member(name)
            self._mode, self._begun = _COLON, None
        return True

    def _mark(self, byte: int) -> None:
        match byte:
            case 0x5B:  # [
                place = self._next
                self._push((True, place, 0, self._seen, self._frame), _VALUE)
                self._next = place.item(0) if place is not None else None
                self._unique = place is not None and place.unique is not None
            case 0x7B:  # {
                self._push((False, self._next, 0, self._seen, self._frame), _NAME)
                self._unique = False
            case 0x5D | 0x7D:  # ] }
                self._pop()
            case 0x2C:  # ,
                self._comma()
            case 0x3A:  # :
                self._mode = _VALUE
            case 0x22 if self._mode == _NAME:
                self._mode = _IN_NAME
                self._begun = b'"' if self._frame[1] is not None else None
            case 0x22:
                self._mode = _STRING
                self._begun = b'"' if self._unique else None
            case _:
                self._mode = _SCALAR
                self._begun = bytes((byte,)) if self._unique else None

    def _push(self, frame: Any, mode: int) -> None:
        self._frame, self._mode, self._seen, self._begun = frame, mode, [], None

    def _pop(self) -> None:
        if self._frame is None:
            return
        self._seen, self._frame = self._frame[3], self._frame[4]
        self._mode, self._begun = _AFTER, None
        place = self._frame[1] if self._frame is not None and self._frame[0] else None
        self._unique = place is not None and place.unique is not None

    def _comma(self) -> None:
        if self._frame is None:
            return
        is_array, place, index, seen, around = self._frame
        if is_array:
            self._frame = (True, place, index + 1, seen, around)
            self._next = place.item(index + 1) if place is not None else None
        self._mode = _VALUE if is_array else _NAME

    def _ended(self) -> bool:
        """A value is over. Whether it is another one than those before."""
        self._mode, begun, self._begun = _AFTER, self._begun, None
        if begun is None:
            return True
        key = b"0" if begun == b"-0" else begun
        at = bisect_left(self._seen, key)
        if at < len(self._seen) and self._seen[at] == key:
            return False
        self._seen = [*self._seen[:at], key, *self._seen[at:]]
        return True

    def _alive(self) -> bool:
        if not self._unique or self._mode == _AFTER:
            return True
        begun = self._begun or b""
        left = self._frame[1].unique.left(begun)
        if begun == b"-0":
            begun = b"0"
        return bool(left > len(self._used(begun)))

    def _used(self, begun: bytes) -> list[bytes]:
        """Items that are there and begin so."""
        return self._seen[bisect_left(self._seen, begun) : bisect_left(self._seen, begun + b"\xff" * 4)]

    def looked_at(self, spelt: Spelt) -> tuple[NDArray[np.uint8], list[int]]:
        """The tokens that may break the rule from here: those of these bits, and these."""
        if not self._unique:
            return spelt.openers, []
        begun, items, more = self._begun or b"", self._frame[1].unique, list[int]()
        found = spelt.marks if items.few else spelt.two_quotes if self._mode == _STRING else spelt.ends
        if self._mode == _STRING or (self._mode != _AFTER and not items.endless):
            for used in self._used(begun):
                if rest := used[len(begun) :]:
                    more += spelt.beginning(rest)
                    more += [] if items.endless else spelt.within(rest)
        if begun in (b"", b"-") and self._mode != _AFTER:
            more += spelt.within(b"-0") + spelt.within(b"0")
        return found, more


def _name(begun: bytes) -> str | None:
    try:
        found = json.loads(begun)
    except ValueError:
        return None
    return found if isinstance(found, str) else None


class Distinct:
    """A walk that follows an answer token by token, forth and back."""

    def __init__(self, place: SetPlace, spelt: Spelt) -> None:
        self._place, self._spelt = place, spelt
        self._walks = [Walk(place)]

    def fresh(self) -> Distinct:
        """Another one, at the beginning."""
        return Distinct(self._place, self._spelt)

    def back(self, tokens: int) -> None:
        """To where so many tokens had come."""
        del self._walks[tokens + 1 :]

    def taken(self, tokens: Sequence[int], ends: Sequence[int]) -> int:
        """Go on by tokens; how many of them may come."""
        for count, token in enumerate(tokens):
            walk = self._walks[-1]
            if token not in ends:
                walk = walk.copy()
                if not walk.goes_on(self._spelt.bytes[token]):
                    return count
            self._walks.append(walk)
        return len(tokens)

    def without(self, bits: bytes) -> bytes:
        """What the engine allows next, without what breaks the rule."""
        walk, found = self._walks[-1], np.frombuffer(bits, np.uint8).copy()
        some, more = walk.looked_at(self._spelt)
        both = found[: len(some)] & some
        tokens = {8 * int(byte) + bit for byte in np.flatnonzero(both) for bit in range(8) if both[byte] >> bit & 1}
        tokens.update(token for token in more if found[token >> 3] >> (token & 7) & 1)
        for token in tokens:
            if not walk.copy().goes_on(self._spelt.bytes[token]):
                found[token >> 3] &= 0xFF ^ (1 << (token & 7))
        return found.tobytes()
