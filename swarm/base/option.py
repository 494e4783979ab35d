"""Options declared once: as fields of the frozen dataclass that uses them.

    seed: int = option(0, "same seed, same output", "S", read=Number(int, 0, 2**63 - 1, "a seed"))

The command line (`swarm/cli/parser.py`), its help and docs/cli.md, the keywords of the Python API and their bounds read
this declaration; `build` makes the dataclass of what was given. Nothing is copied from one configuration to the next by
hand, and a default stands in one place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from typing import Any, TypeVar

from swarm.base.errors import UsageError

T = TypeVar("T")
_KEY = "option"


@dataclass(frozen=True)
class Number:
    """Reads a number in [low, high], or refuses it in words.

    what   it is, with its unit: "seconds", "a number of layers"
    above  `low` itself is refused
    scale  what one of it is in the field's unit: 10**9 reads gigabytes into bytes, a whole number
    """

    kind: type[int] | type[float]
    low: float
    high: float
    what: str
    above: bool = False
    scale: int | float | None = None

    def __call__(self, text: str) -> int | float:
        """Raises UsageError."""
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if not self.holds(value):
            raise UsageError(f"expected {self.what} ({self.span}), found {text!r}")
        return value if self.scale is None else type(self.scale)(value * self.scale)

    def holds(self, value: float) -> bool:
        """Whether a number is within the bounds; nan never is."""
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    @property
    def span(self) -> str:
        """The bounds in words."""
        low, high = (str(end) if isinstance(end, int) else f"{end:.15g}" for end in (self.low, self.high))
        if self.high == math.inf:
            return f"{low} or more"
        return f"above {low} and at most {high}" if self.above else f"{low} to {high}"


@dataclass(frozen=True)
class Option:
    """How a field is given from outside.

    name      what is typed: "--kv-memory", or "prompt" for a word without dashes
    help      what it does; %(default)s stands for its default
    metavar   what stands for the value in help
    read      text to value; raises UsageError. None: the text itself
    choices   texts that are taken, where only some are
    group     heading in help
    everyday  `--help` shows it; the others are shown by `--help-all`
    off       a flag that turns off a field that is on
    repeat    may be given several times;   many: takes several values at once
    join      the values of `repeat` or `many` as the field has them
    alone     its value when it is given without one; None: a value must follow
    optional  of a word without dashes: it may be left away
    excludes  options of the same `excludes` exclude each other
    shown     the default as it would be typed, where the field's own is something else
    short     the same in a letter: "-v"
    """

    name: str
    help: str
    metavar: str | None = None
    read: Callable[[str], object] | None = None
    choices: Sequence[str] | None = None
    group: str = ""
    everyday: bool = False
    flag: bool = False
    off: bool = False
    repeat: bool = False
    many: bool = False
    join: Callable[[Sequence[Any]], object] = tuple
    alone: object = None
    required: bool = False
    optional: bool = False
    excludes: str = ""
    shown: str | None = None
    short: str = ""

    @property
    def dest(self) -> str:
        """Its name among parsed arguments."""
        return self.name.lstrip("-").replace("-", "_")


def option(
    default: T,
    help: str,
    metavar: str | None = None,
    *,
    name: str = "",
    factory: Callable[[], T] | None = None,
    **how: Any,
) -> T:
    """A dataclass field that can be given from outside. `how`: as `Option` says. `name`: default `--the-field-s-name`.

    `factory` makes the default when nothing is given; `default` is then only what its type is told by.
    """
    metadata = {_KEY: (name, {"help": help, "metavar": metavar, "flag": isinstance(default, bool), **how})}
    made: Any = field(metadata=metadata, **({"default": default} if factory is None else {"default_factory": factory}))
    return made  # type: ignore[no-any-return]


def or_none(read: Callable[[str], T]) -> Callable[[str], T | None]:
    """The same, and an empty text is none: `--advertise "$ADDRESS"` where nothing is set."""
    return lambda text: read(text) if text else None


def like(kind: type, name: str) -> Any:
    """A field that is given as that field of `kind` is, with the same default."""
    other = _fields(kind)[name]
    return field(default=other.default, metadata=other.metadata)


@cache
def declared(kind: Any) -> tuple[tuple[str, Option, Any], ...]:
    """The fields of a dataclass that can be given: name, declaration, default (None where one is made)."""
    found = []
    for name, each in _fields(kind).items():
        if _KEY in each.metadata:
            typed, how = each.metadata[_KEY]
            default = None if each.default is MISSING else each.default
            found.append((name, Option(typed or "--" + name.replace("_", "-"), **how), default))
    return tuple(found)


def build(kind: Callable[..., T], given: Mapping[str, Any], **rest: Any) -> T:
    """`kind` of what was given, by the names of options, and of `rest`, by the names of fields."""
    taken: dict[str, Any] = {}
    for name, each, default in declared(kind):
        if name in rest or each.dest not in given:
            continue
        value = given[each.dest]
        if each.off:
            value = not value
        elif each.repeat or each.many:
            value = each.join(value)
        elif value is None and (default is not None or _fields(kind)[name].default is MISSING):
            continue  # not given
        taken[name] = value
    return kind(**taken, **rest)


def check(held: Any) -> None:
    """Whether every declared field of a dataclass is within its bounds. Raises UsageError."""
    kind: Any = type(held)
    for name, each, default in declared(kind):
        value, number = getattr(held, name), each.read
        if value is None and default is None:
            continue
        if each.choices is not None and value not in each.choices:
            raise UsageError(f"expected {each.name} {'|'.join(each.choices)}, found {value!r}")
        if isinstance(number, Number) and number.scale is None and not number.holds(value):
            raise UsageError(f"{name} must be {number.span}, found {value}")
        if isinstance(number, Number) and number.scale is not None and value < 0:  # bounds are of what is typed
            raise UsageError(f"{name} must be 0 or more, found {value}")


def _fields(kind: Any) -> dict[str, Field[Any]]:
    return {each.name: each for each in fields(kind)}
