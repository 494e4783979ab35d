"""One declared form for what peers send: frozen dataclasses to msgpack's lists and maps, and back, strictly.

A field's annotation carries its bounds, so that what is written, what is read and what mypy knows cannot drift apart:

    @by_position
    @dataclass(frozen=True)
    class Notice:
        id: Annotated[bytes, Exactly(8)]
        expires: Annotated[int, Between(0, 2**40 - 1)]
        why: Annotated[str, AtMost(64), Printable()]

    NOTICE = Codec(Notice, "notice")
    NOTICE.read_untrusted([b"noticeid", 7, "old"])

There is no form without a bound: an int, a text, bytes or a list that declares none is a TypeError when the codec is
first used. A bool is no number and NaN is in no range. What is read is refused with one error type, which names the
field: "expected a number from 0 to 1099511627775 at notice.expires, found -1; update the older side".

Not for arrays: rows of frames stay views of the body that they came in (`swarm.ring.frame`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Generic, TypeVar

import msgpack

from swarm.base.bounds import AtMost
from swarm.base.compiled import Reader, Wrong, many_of, reader_of, tagged_reader, writer_of
from swarm.base.errors import PeerError, SwarmError

T = TypeVar("T")
U = TypeVar("U")

ADVICE = "update the older side"
"""What to do about a message that another version may have meant well."""


class Codec(Generic[T]):
    """Reads and writes one class, or one of several that their tags tell apart.

    what    how errors call it: the first part of a field's path
    error   the one type that reading raises
    advice  what the errors tell people to do
    """

    def __init__(self, form: type[T], what: str, error: type[SwarmError] = PeerError, advice: str = ADVICE) -> None:
        self._forms: tuple[Any, ...] = (form,)
        self._what, self._error, self._advice = what, error, advice

    @classmethod
    def any_of(cls, what: str, *forms: type[T], error: type[SwarmError] = PeerError) -> Codec[T]:
        """For whichever of `forms` the tag names; all of them have one, under one key."""
        codec = cls(forms[0], what, error)
        codec._forms = forms
        return codec

    @staticmethod
    def list_of(form: type[U], what: str, most: int, error: type[SwarmError] = PeerError) -> Codec[tuple[U, ...]]:
        """For a list of at most so many."""
        return Codec(many_of(form, AtMost(most)), what, error)

    @cached_property
    def _read(self) -> Reader:
        return reader_of(self._forms[0]) if len(self._forms) == 1 else tagged_reader(self._forms)

    @cached_property
    def _write(self) -> Callable[[Any], Any]:
        if len(self._forms) > 1:
            writers = {form: writer_of(form) for form in self._forms}
            return lambda record: writers[type(record)](record)
        return writer_of(self._forms[0]) or (lambda value: value)

    def read_untrusted(self, value: object) -> T:
        """The record in what msgpack (or a message's header) gave. Raises the codec's error."""
        try:
            found: T = self._read(value)
        except Wrong as wrong:
            cause = wrong.__cause__
            if isinstance(cause, self._error) and type(cause) is not self._error:
                raise cause from None  # it says more than this one could
            raise self._error(wrong.text(self._what, self._advice)) from None
        return found

    def unpack_untrusted(self, data: object, most: int, one_encoding: bool = False) -> T:
        """The record in msgpack's bytes. Raises the codec's error.

        most          bytes that it may have
        one_encoding  refuse other bytes than `pack` makes of what was read: for what is signed or hashed
        """
        if not isinstance(data, bytes | bytearray | memoryview) or len(data) > most:
            found: object = len(data) if isinstance(data, bytes | bytearray | memoryview) else type(data).__name__
            raise self._error(f"expected a {self._what} of at most {most} bytes, found {found}")
        try:
            value = msgpack.unpackb(data, raw=False, strict_map_key=True)
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise self._error(f"a {self._what} is not msgpack: {type(error).__name__}") from error
        record = self.read_untrusted(value)
        if one_encoding and self.pack(record) != data:
            raise self._error(f"expected a {self._what} in its one encoding, found other bytes; {self._advice}")
        return record

    def write(self, record: T) -> list[object]:
        """The list of a class `by_position`. Trusts its fields."""
        written: list[object] = self._write(record)
        return written

    def header(self, record: T) -> dict[str, object]:
        """The map of a class `by_name`. Trusts its fields."""
        written: dict[str, object] = self._write(record)
        return written

    def pack(self, record: T) -> bytes:
        """The record as msgpack's bytes. Trusts its fields."""
        packed: bytes = msgpack.packb(self._write(record))
        return packed
