"""What a declaration of the codec is made of: bounds beside the types of fields, and how a class travels as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Between:
    """A number from `low` to `high`, both included; where a float is declared, a whole one stands for it as it came."""

    low: float
    high: float


@dataclass(frozen=True)
class Exactly:
    """Bytes, or a list, of one of these sizes."""

    sizes: tuple[int, ...]

    def __init__(self, *sizes: int) -> None:
        object.__setattr__(self, "sizes", sizes)


@dataclass(frozen=True)
class AtMost:
    """So many bytes, characters or entries at most, and at least `least`."""

    most: int
    least: int = 0


@dataclass(frozen=True)
class Printable:
    """Text that may be shown to people: no control characters, nothing that turns its direction."""


@dataclass(frozen=True)
class OneOf:
    """One of these texts; a `Literal` says the same."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Spelled:
    """A value with another spelling on the wire.

    `read` gets what `form` declares, or anything; it may raise any SwarmError or ValueError.
    """

    read: Callable[[Any], Any]
    write: Callable[[Any], Any]
    form: Any = None


@dataclass(frozen=True)
class Key:
    """The name that a field has in a map, where it is not its own."""

    name: str


@dataclass(frozen=True)
class MayLack:
    """In a map: who does not send the field means its default. `unsaid`: the default is not written either."""

    unsaid: bool = False


@dataclass(frozen=True)
class Since:
    """In a list that begins with its format: the first one that has the field. In older ones it has its default."""

    format: int


@dataclass(frozen=True)
class Form:
    """How a class travels: by position, with `formats` behind a leading number; or by name, with a constant `tag`."""

    named: bool
    formats: tuple[int, ...] = ()
    tag: tuple[str, str] | None = None
    strict: bool = False


def by_position(cls: type[T]) -> type[T]:
    """The fields as a list, in the order in which they are declared."""
    return _formed(cls, Form(named=False))


def by_format(*formats: int) -> Callable[[type[T]], type[T]]:
    """As `by_position`, behind a number: the oldest of `formats` that has every field that is not at its default."""
    return lambda cls: _formed(cls, Form(named=False, formats=formats))


def by_name(
    tag: tuple[str, str] | None = None, others: Literal["ignored", "refused"] = "ignored"
) -> Callable[[type[T]], type[T]]:
    """The fields as a map. `tag`: one more entry that tells kinds apart; `others`: entries that are not declared."""
    return lambda cls: _formed(cls, Form(named=True, tag=tag, strict=others == "refused"))


def _formed(cls: type[T], form: Form) -> type[T]:
    cls.__form__ = form  # type: ignore[attr-defined]
    return cls
