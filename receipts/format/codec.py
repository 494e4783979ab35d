"""Frozen dataclasses to JSON and back, strictly: each field has a declared form, and unknown fields are refused.

A field's annotation carries its bounds (`Annotated[int, Range(0, 10)]`), so that reading, the JSON Schema and the
documentation cannot drift apart. `encode` trusts its input; `decode_untrusted` trusts nothing.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar

from receipts.format.canonical import MAX_INTEGER
from receipts.format.errors import ReceiptError, Refusal

T = TypeVar("T")
_Reader = Callable[[Any, str], Any]
_MAP_KEY = re.compile(r"[a-z0-9_]{1,40}\Z")


@dataclass(frozen=True)
class Hex:
    """A string of `size` bytes in lower-case hex."""

    size: int


@dataclass(frozen=True)
class Text:
    """A string of at most `limit` characters; one of `choices` when given."""

    limit: int = 200
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Range:
    """An integer from `low` to `high`, both included."""

    low: int = 0
    high: int = MAX_INTEGER


@dataclass(frozen=True)
class Many:
    """A list or map of `low` to `high` entries."""

    low: int = 0
    high: int = 64


@dataclass(frozen=True)
class Raw:
    """`low` to `high` bytes, which messages of a ring carry and JSON does not."""

    low: int = 0
    high: int = 1 << 20


Digest = Annotated[str, Hex(32)]
Key = Annotated[str, Hex(32)]
Count = Annotated[int, Range()]
Micros = Annotated[int, Range()]
Name = Annotated[str, Text(200)]


LATER = {"later": True}
"""`metadata` of a field, X | None, that older receipts do not have: where it is None it is left out, never null."""


def among_others(cls: type[T]) -> type[T]:
    """For parts of a ring's messages: other entries of the map are left alone, since newer sides may add some."""
    cls.__others__ = True  # type: ignore[attr-defined]
    return cls


def encode(value: Any) -> Any:
    """JSON form of a dataclass, tuple, mapping or plain value."""
    if dataclasses.is_dataclass(value):
        found = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {name: item for name, item in found.items() if item is not None or name not in _later(type(value))}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    return value


def decode_untrusted(cls: type[T], value: Any, where: str) -> T:
    """Read a dataclass from parsed JSON. Raises ReceiptError(SHAPE or COUNT) naming the field."""
    result: T = _reader(typing.cast(Any, cls))(value, where)
    return result


def schema(annotation: Any) -> dict[str, Any]:
    """JSON Schema (2020-12) of the same form that `decode_untrusted` accepts."""
    base, bound = _unpack(annotation)
    inner = _optional(base)
    if inner is not None:
        return {"anyOf": [schema(inner), {"type": "null"}]}
    if dataclasses.is_dataclass(base):
        fields = _fields(base)
        later = _later(base)
        properties = {name: schema(_present(kind) if name in later else kind) for name, kind in fields.items()}
        required = sorted(fields.keys() - later)
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if base is bool:
        return {"type": "boolean"}
    if base is int:
        limits = bound or Range()
        return {"type": "integer", "minimum": limits.low, "maximum": limits.high}
    if base is str:
        if isinstance(bound, Hex):
            return {"type": "string", "pattern": f"^[0-9a-f]{{{2 * bound.size}}}$"}
        text = bound or Text()
        return {"enum": list(text.choices)} if text.choices else {"type": "string", "maxLength": text.limit}
    many, (origin, args) = bound or Many(), _generic(base)
    if origin is tuple:
        return {"type": "array", "items": schema(args[0]), "minItems": many.low, "maxItems": many.high}
    return {
        "type": "object",
        "propertyNames": {"pattern": "^[a-z0-9_]{1,40}$"},
        "additionalProperties": schema(args[1]),
        "minProperties": many.low,
        "maxProperties": many.high,
    }


def _unpack(annotation: Any) -> tuple[Any, Any]:
    if typing.get_origin(annotation) is Annotated:
        base, bound = typing.get_args(annotation)[:2]
        return base, bound
    return annotation, None


def _optional(base: Any) -> Any:
    """The X of `X | None`, else None."""
    if typing.get_origin(base) in (typing.Union, types.UnionType):
        (inner,) = [arg for arg in typing.get_args(base) if arg is not type(None)]
        return inner
    return None


def _generic(base: Any) -> tuple[Any, tuple[Any, ...]]:
    origin = typing.get_origin(base)
    if origin is tuple:
        return tuple, typing.get_args(base)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return Mapping, typing.get_args(base)
    raise TypeError(f"no JSON form for {base!r}")


def _later(cls: Any) -> set[str]:
    """Names of the fields that older receipts do not have."""
    return {field.name for field in dataclasses.fields(cls) if field.metadata.get("later")}


def _present(annotation: Any) -> Any:
    """The X of a later field."""
    return _optional(_unpack(annotation)[0])


def _fields(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@cache
def _reader(annotation: Any) -> _Reader:
    base, bound = _unpack(annotation)
    inner = _optional(base)
    if inner is not None:
        read = _reader(inner)
        return lambda value, where: None if value is None else read(value, where)
    if dataclasses.is_dataclass(base):
        return _record_reader(base)
    if base is bool:
        return _read_bool
    if base is int:
        return _int_reader(bound or Range())
    if base is bytes:
        return _bytes_reader(bound or Raw())
    if base is str:
        return _hex_reader(bound) if isinstance(bound, Hex) else _text_reader(bound or Text())
    origin, args = _generic(base)
    if origin is tuple:
        return _list_reader(_reader(args[0]), bound or Many())
    return _map_reader(_reader(args[1]), bound or Many())


def _wrong(where: str, wanted: str, value: Any) -> ReceiptError:
    return ReceiptError(Refusal.SHAPE, f"{where}: expected {wanted}, found {str(value)[:60]!r}")


def _record_reader(cls: Any) -> _Reader:
    later, open_to_others = _later(cls), "__others__" in cls.__dict__
    readers = {name: _reader(_present(kind) if name in later else kind) for name, kind in _fields(cls).items()}

    def read(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        if open_to_others and readers.keys() - later <= value.keys():
            pass
        elif value.keys() - later != readers.keys() - later:
            extra, missing = sorted(value.keys() - readers.keys()), sorted(readers.keys() - later - value.keys())
            raise ReceiptError(
                Refusal.SHAPE, f"{where}: missing {missing}, unknown {[name[:40] for name in extra][:8]}"
            )
        given = {name: read for name, read in readers.items() if name in value}
        return cls(**{name: read_field(value[name], f"{where}.{name}") for name, read_field in given.items()})

    return read


def _read_bool(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, "true or false", value)
    return value


def _int_reader(bound: Range) -> _Reader:
    def read(value: Any, where: str) -> int:
        if type(value) is not int or not bound.low <= value <= bound.high:
            raise _wrong(where, f"an integer from {bound.low} to {bound.high}", value)
        return value

    return read


def _hex_reader(bound: Hex) -> _Reader:
    pattern = re.compile(f"[0-9a-f]{{{2 * bound.size}}}\\Z")

    def read(value: Any, where: str) -> str:
        if not isinstance(value, str) or not pattern.match(value):
            raise _wrong(where, f"{bound.size} bytes in lower-case hex", value)
        return value

    return read


def _text_reader(bound: Text) -> _Reader:
    def read(value: Any, where: str) -> str:
        if not isinstance(value, str) or len(value) > bound.limit:
            raise _wrong(where, f"text of at most {bound.limit} characters", value)
        if bound.choices and value not in bound.choices:
            raise _wrong(where, f"one of {', '.join(bound.choices)}", value)
        return value

    return read


def _bytes_reader(bound: Raw) -> _Reader:
    def read(value: Any, where: str) -> bytes:
        if not isinstance(value, bytes) or not bound.low <= len(value) <= bound.high:
            raise _wrong(where, f"{bound.low} to {bound.high} bytes", value)
        return value

    return read


def _list_reader(read_item: _Reader, bound: Many) -> _Reader:
    def read(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):  # messages may carry tuples where JSON has lists
            raise _wrong(where, "a list", value)
        if not bound.low <= len(value) <= bound.high:
            raise ReceiptError(Refusal.COUNT, f"{where}: {bound.low} to {bound.high} entries, found {len(value)}")
        return tuple([read_item(item, f"{where}[{index}]") for index, item in enumerate(value)])

    return read


def _map_reader(read_item: _Reader, bound: Many) -> _Reader:
    def read(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(where, "an object", value)
        if not bound.low <= len(value) <= bound.high:
            raise ReceiptError(Refusal.COUNT, f"{where}: {bound.low} to {bound.high} entries, found {len(value)}")
        for key in value:
            if not _MAP_KEY.match(key):
                raise _wrong(where, "short lower-case names", key)
        return {key: read_item(item, f"{where}.{key}") for key, item in value.items()}

    return read
