"""A declaration made into functions that read and write it, once per annotation: the inside of `swarm.base.codec`."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from operator import attrgetter, call
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from swarm.base.bounds import AtMost, Between, Exactly, Form, Key, MayLack, OneOf, Printable, Since, Spelled
from swarm.base.errors import SwarmError

T = TypeVar("T")
Reader: TypeAlias = Callable[[Any], Any]
Writer: TypeAlias = Callable[[Any], Any] | None
"""None: the value as it is."""


class Wrong(Exception):
    """A value that is not as declared, on its way out through the fields that hold it: `path` grows backwards."""

    def __init__(self, wanted: str, found: str = "") -> None:
        super().__init__(wanted)
        self.wanted, self.found, self.path = wanted, found, ""

    def text(self, what: str, advice: str) -> str:
        found = f", found {self.found}" if self.found else ""
        return f"expected {self.wanted} at {what}{self.path}{found}; {advice}"


def wrong(wanted: str, value: object) -> Wrong:
    """Something else than `wanted` was found: `value`."""
    return Wrong(wanted, _described(value))


def _told(error: Exception) -> Wrong:
    """What a check says that knows more than the form does."""
    return Wrong(str(error).removeprefix("expected "))


def _described(value: object) -> str:
    """A stranger's value in a few words; its size where its content would not fit, or should not be shown."""
    match value:
        case bytes() | bytearray():
            return f"{len(value)} bytes"
        case list() | tuple():
            return f"a list of {len(value)}"
        case Mapping():
            return f"a map of {len(value)}"
        case str():
            return repr(value[:24])
        case None | bool() | int() | float():
            return repr(value)[:24]
        case _Nothing():
            return "nothing"
        case _:
            return type(value).__name__


def _parts(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    if typing.get_origin(annotation) is Annotated:
        base, *bounds = typing.get_args(annotation)
        return base, tuple(bounds)
    return annotation, ()


def many_of(form: Any, bound: AtMost) -> Any:
    """The annotation of a list of these."""
    many = types.GenericAlias(tuple, (form, ...))
    return Annotated[many, bound]


def _one(bounds: tuple[Any, ...], *kinds: type) -> Any:
    return next((bound for bound in bounds if isinstance(bound, kinds)), None)


def _optional(base: Any) -> Any:
    """The X of `X | None`, else None."""
    if typing.get_origin(base) in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(base) if arg is not type(None)]
        if len(inner) == 1:
            return inner[0]
    return None


@cache
def reader_of(annotation: Any) -> Reader:
    base, bounds = _parts(annotation)
    if (spelled := _one(bounds, Spelled)) is not None:
        return _spelled_reader(spelled)
    if (inner := _optional(base)) is not None:
        read = reader_of(Annotated[inner, *bounds] if bounds else inner)
        return lambda value: None if value is None else read(value)
    if dataclasses.is_dataclass(base):
        return _record_reader(base)
    if typing.get_origin(base) is Literal:
        return _choice_reader(typing.get_args(base))
    if base is bool:
        return _read_bool
    if base is int or base is float:
        return _number_reader(_needed(base, _one(bounds, Between)), whole=base is int)
    if base is bytes:
        return _bytes_reader(_needed(base, _one(bounds, Exactly, AtMost)))
    if base is str:
        if (choice := _one(bounds, OneOf)) is not None:
            return _choice_reader(choice.texts)
        return _text_reader(_needed(base, _one(bounds, AtMost)), _one(bounds, Printable) is not None)
    origin, args = typing.get_origin(base), typing.get_args(base)
    if origin is tuple and args[-1] is Ellipsis:
        return _list_reader(reader_of(args[0]), _needed(base, _one(bounds, Exactly, AtMost)))
    if origin is tuple:
        return _fixed_reader([reader_of(arg) for arg in args])
    if isinstance(origin, type) and issubclass(origin, Mapping) and args[1] is object:
        return _map_reader(_needed(base, _one(bounds, AtMost)))
    raise TypeError(f"expected a form that travels, found {annotation!r}")


def _needed(base: object, bound: T | None) -> T:
    if bound is None:
        raise TypeError(f"expected a bound beside {base!r}; nothing that a peer sends may be without one")
    return bound


def _read_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise wrong("true or false", value)
    return value


def _number_reader(bound: Between, whole: bool) -> Reader:
    low, high = bound.low, bound.high

    def read_whole(value: Any) -> int:
        if type(value) is int and low <= value <= high:
            return value
        raise wrong(f"a number from {low} to {high}", value)

    def read(value: Any) -> float:
        if (type(value) is not float and type(value) is not int) or not low <= value <= high:  # NaN is in no range
            raise wrong(f"a number from {low} to {high}", value)
        return value

    return read_whole if whole else read


def _sized(bound: Exactly | AtMost) -> tuple[range | tuple[int, ...], str]:
    """Which sizes are right, and in words."""
    if isinstance(bound, Exactly):
        return bound.sizes, " or ".join(map(str, bound.sizes))
    words = f"at most {bound.most}" if not bound.least else f"{bound.least} to {bound.most}"
    return range(bound.least, bound.most + 1), words


def _bytes_reader(bound: Exactly | AtMost) -> Reader:
    sizes, words = _sized(bound)

    def read(value: Any) -> bytes:
        if type(value) is not bytes or len(value) not in sizes:
            raise wrong(f"{words} bytes", value)
        return value

    return read


def _text_reader(bound: AtMost, printable: bool) -> Reader:
    sizes, words = _sized(bound)
    wanted = f"{'printable ' * printable}text of {words} characters"

    def read(value: Any) -> str:
        if type(value) is not str or len(value) not in sizes or (printable and not value.isprintable()):
            raise wrong(wanted, value)
        return value

    return read


def _choice_reader(texts: tuple[str, ...]) -> Reader:
    known = frozenset(texts)

    def read(value: Any) -> str:
        if type(value) is not str or value not in known:
            raise wrong(f"one of {', '.join(map(repr, texts))}", value)
        return value

    return read


def _spelled_reader(spelled: Spelled) -> Reader:
    read_it, read_form = spelled.read, reader_of(spelled.form) if spelled.form is not None else None

    def read(value: Any) -> Any:
        if read_form is not None:
            value = read_form(value)
        try:
            return read_it(value)
        except (SwarmError, ValueError) as error:
            raise _told(error) from error

    return read


def _map_reader(bound: AtMost) -> Reader:
    sizes, words = _sized(bound)

    def read(value: Any) -> Mapping[str, object]:
        if not isinstance(value, Mapping) or len(value) not in sizes:
            raise wrong(f"a map of {words} entries", value)
        return value

    return read


def _list_reader(read_item: Reader, bound: Exactly | AtMost) -> Reader:
    sizes, words = _sized(bound)

    def read(value: Any) -> tuple[Any, ...]:
        if (type(value) is not list and type(value) is not tuple) or len(value) not in sizes:
            raise wrong(f"a list of {words}", value)
        found: list[Any] = []
        try:
            found.extend(map(read_item, value))  # where it raises, what was read stays: its length is the place
        except Wrong as error:
            error.path = f"[{len(found)}]{error.path}"
            raise
        return tuple(found)

    return read


def _fixed_reader(readers: list[Reader]) -> Reader:
    count = len(readers)

    def read(value: Any) -> tuple[Any, ...]:
        if (type(value) is not list and type(value) is not tuple) or len(value) != count:
            raise wrong(f"a list of {count}", value)
        found: list[Any] = []
        try:
            found.extend(map(call, readers, value))
        except Wrong as error:
            error.path = f"[{len(found)}]{error.path}"
            raise
        return tuple(found)

    return read


class _Nothing:
    """What stands where a map lacks a field: no reader takes it."""

    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Nothing()
_REQUIRED = object()


@dataclass(frozen=True)
class _Field:
    name: str
    key: str
    read: Reader
    write: Writer
    default: Any
    lack: MayLack | None
    since: int


@cache
def _fields(cls: Any) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):
        _, bounds = _parts(hints[field.name])
        key, lack, since = _one(bounds, Key), _one(bounds, MayLack), _one(bounds, Since)
        default = _REQUIRED if field.default is dataclasses.MISSING else field.default
        if default is _REQUIRED and (lack or since):
            raise TypeError(f"expected a default of {cls.__name__}.{field.name}, which some do not send")
        found.append(
            _Field(
                field.name,
                key.name if key else field.name,
                reader_of(hints[field.name]),
                writer_of(hints[field.name]),
                default,
                lack,
                since.format if since else 0,
            )
        )
    if [field.since for field in found] != sorted(field.since for field in found):
        raise TypeError(f"expected the fields of later formats at the end of {cls.__name__}, in their order")
    return tuple(found)


def _form_of(cls: Any) -> Form:
    form = cls.__dict__.get("__form__")
    if not isinstance(form, Form):
        raise TypeError(f"expected {cls.__name__} to be declared by_position, by_format or by_name")
    return form


def _record_reader(cls: Any) -> Reader:
    form = _form_of(cls)
    if form.named:
        return _by_name_reader(cls, form)
    return _by_format_reader(cls, form.formats) if form.formats else _by_position_reader(cls, _fields(cls), 0)


def _maker(cls: Any) -> Callable[[list[Any]], Any]:
    """Makes the record of its fields, in their order; its own checks speak as the codec does."""
    contradiction = getattr(cls, "contradiction", None)

    def make(found: list[Any]) -> Any:
        try:
            record = cls(*found)
        except SwarmError as error:
            raise _told(error) from error
        if contradiction is not None and (why := contradiction(record)):
            raise Wrong(why)
        return record

    return make


def _by_position_reader(cls: Any, fields: tuple[_Field, ...], skipped: int) -> Reader:
    """`skipped`: entries before the first field."""
    readers, make, count = [field.read for field in fields], _maker(cls), len(fields) + skipped

    def read(value: Any) -> Any:
        if (type(value) is not list and type(value) is not tuple) or len(value) != count:
            raise wrong(f"{count} fields", value)
        found: list[Any] = []
        try:
            found.extend(map(call, readers, value[skipped:] if skipped else value))
        except Wrong as error:
            error.path = f".{fields[len(found)].name}{error.path}"
            raise
        return make(found)

    return read


def _by_format_reader(cls: Any, formats: tuple[int, ...]) -> Reader:
    fields = _fields(cls)
    readers = {
        number: _by_position_reader(cls, tuple(field for field in fields if field.since <= number), 1)
        for number in formats
    }

    def read(value: Any) -> Any:
        if type(value) is not list or not value or type(value[0]) is not int:
            raise wrong("a list that begins with its format", value)
        if value[0] not in readers:
            raise Wrong(f"format {formats[-1]}", f"format {value[0]!r:.24}")
        return readers[value[0]](value)

    return read


def _by_name_reader(cls: Any, form: Form) -> Reader:
    fields, make = _fields(cls), _maker(cls)
    keys, readers = [field.key for field in fields], [_lacking(field) for field in fields]
    known = {*keys, *({form.tag[0]} if form.tag else ())}

    def read(value: Any) -> Any:
        if type(value) is not dict and not isinstance(value, Mapping):
            raise wrong("a map", value)
        if form.tag is not None and value.get(form.tag[0], _NOTHING) != form.tag[1]:
            raise _at(f".{form.tag[0]}", wrong(repr(form.tag[1]), value.get(form.tag[0], _NOTHING)))
        if form.strict and not value.keys() <= known:
            raise wrong(f"only {', '.join(sorted(known))}", value)
        found: list[Any] = []
        try:
            found.extend(map(call, readers, map(value.get, keys, repeat(_NOTHING))))
        except Wrong as error:
            raise _at(f".{keys[len(found)]}", error) from error.__cause__
        return make(found)

    return read


def _lacking(field: _Field) -> Reader:
    """The field's reader where it may be missing; one that may not is refused by its own reader."""
    if field.lack is None:
        return field.read
    read, default = field.read, field.default
    return lambda value: default if value is _NOTHING else read(value)


def _at(place: str, error: Wrong) -> Wrong:
    error.path = place + error.path
    return error


def tagged_reader(classes: tuple[Any, ...]) -> Reader:
    forms = {cls: _form_of(cls) for cls in classes}
    keys = {form.tag[0] for form in forms.values() if form.tag}
    if len(keys) != 1 or any(form.tag is None for form in forms.values()):
        raise TypeError(f"expected classes with one tag each, under one key: {', '.join(c.__name__ for c in classes)}")
    (key,) = keys
    readers = {form.tag[1]: reader_of(cls) for cls, form in forms.items() if form.tag}

    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise wrong("a map", value)
        tag = value.get(key, _NOTHING)
        if type(tag) is not str or tag not in readers:
            raise _at(f".{key}", wrong(f"one of {', '.join(map(repr, readers))}", tag))
        return readers[tag](value)

    return read


@cache
def writer_of(annotation: Any) -> Any:
    """A `Writer`; for a record never None."""
    base, bounds = _parts(annotation)
    if (spelled := _one(bounds, Spelled)) is not None:
        return _spelled_writer(spelled)
    if (inner := _optional(base)) is not None:
        write = writer_of(inner)
        return None if write is None else lambda value: None if value is None else write(value)
    if dataclasses.is_dataclass(base):
        return _record_writer(base)
    origin, args = typing.get_origin(base), typing.get_args(base)
    if origin is tuple and args[-1] is Ellipsis:
        write = writer_of(args[0])
        return None if write is None else lambda value: [write(item) for item in value]
    if origin is tuple:
        writers = [writer_of(arg) for arg in args]
        if any(write is not None for write in writers):
            return lambda value: [w(v) if w else v for w, v in zip(writers, value, strict=True)]
    return None


def _spelled_writer(spelled: Spelled) -> Callable[[Any], Any]:
    write_form, write_it = writer_of(spelled.form) if spelled.form is not None else None, spelled.write
    return write_it if write_form is None else lambda value: write_form(write_it(value))


def _record_writer(cls: Any) -> Callable[[Any], Any]:
    form, fields = _form_of(cls), _fields(cls)
    if form.formats:
        return _format_writer(fields, form.formats)
    if not form.named:
        return _compiled(fields, named=False)
    whole = _compiled(fields, named=True, tag=form.tag)
    unsaid = [(field.key, field.default) for field in fields if field.lack is not None and field.lack.unsaid]
    if not unsaid:
        return whole

    def write(record: Any) -> Any:
        written = whole(record)
        for key, default in unsaid:
            if written[key] == default:
                del written[key]
        return written

    return write


def _compiled(fields: tuple[_Field, ...], named: bool, tag: tuple[str, str] | None = None) -> Callable[[Any], Any]:
    """A function that lays out a record's fields, compiled from source as dataclasses compile theirs.

    Field by field in a loop, the header of a frame takes half as long again as the same literal written by hand.
    """
    values = [f"w{n}(r.{f.name})" if f.write is not None else f"r.{f.name}" for n, f in enumerate(fields)]
    entries = [f"{f.key!r}: {value}" for f, value in zip(fields, values, strict=True)]
    start = [f"{tag[0]!r}: {tag[1]!r}"] if tag is not None else []
    source = f"{{{', '.join([*start, *entries])}}}" if named else f"[{', '.join(values)}]"
    made: Callable[[Any], Any] = eval(f"lambda r: {source}", {f"w{n}": f.write for n, f in enumerate(fields)})
    return made


def _format_writer(fields: tuple[_Field, ...], formats: tuple[int, ...]) -> Callable[[Any], list[Any]]:
    values = {
        number: _compiled(tuple(field for field in fields if field.since <= number), named=False) for number in formats
    }
    later = [(attrgetter(field.name), field.default, field.since) for field in fields if field.since > formats[0]]

    def write(record: Any) -> list[Any]:
        number = formats[0]
        for get, default, since in later:
            if since > number and get(record) != default:
                number = since
        return [number, *values[number](record)]

    return write
