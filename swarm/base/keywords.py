"""Keywords of the Python API: a misspelt one is an error that names the right one, a value of another kind one that
names the right kind; never passed over."""

from __future__ import annotations

import builtins
import collections.abc
import difflib
import sys
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from swarm.base.errors import UsageError


def check_keywords(given: Mapping[str, Any], kind: type) -> None:
    """Raises UsageError for a keyword that `kind` (a TypedDict) does not have, or has for values of another kind."""
    known = list(kind.__annotations__)
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            raise UsageError(f"expected a known option, found {name!r}{hint}")
        wanted = _kinds(kind)[name]
        if value is not None and not fits(value, wanted):
            raise UsageError(f"expected {name} to be {say_kind(wanted)}, found {value!r}")


class _Names(dict[str, object]):
    """Names of a module as annotations use them; one that is imported for type checkers alone stands for anything."""

    def __init__(self, module: str) -> None:
        super().__init__(vars(builtins) | vars(sys.modules[module]))

    def __missing__(self, name: str) -> object:
        return Any


@cache
def _kinds(kind: type) -> Mapping[str, object]:
    found: dict[str, object] = {}
    for each in (*getattr(kind, "__orig_bases__", ()), kind):
        if isinstance(each, type):
            found |= get_type_hints(each, localns=_Names(each.__module__))
    return found


def fits(value: object, wanted: Any) -> bool:
    """Whether a value is of the kind that an annotation names, as far as that can be seen from outside: classes,
    unions, literals, tuples, sequences. A whole number is a float too; a truth value is no number."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        each = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
        return len(value) == len(each) and all(map(fits, value, each))
    if origin is collections.abc.Sequence:
        return (
            isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(fits(v, *inner) for v in value)
        )
    if not isinstance(wanted, type) or wanted is Any:
        return True
    if getattr(wanted, "_is_protocol", False):
        return callable(value)
    if wanted in (int, float):
        return isinstance(value, (int, wanted)) and not isinstance(value, bool)
    return isinstance(value, wanted)


def say_kind(wanted: Any) -> str:
    """An annotation in a program's words."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(say_kind(each) for each in inner)
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if wanted is Ellipsis:
        return "..."
    if origin is not None:
        return f"{origin.__name__.lower()}[{', '.join(say_kind(each) for each in inner)}]"
    return "a function" if getattr(wanted, "_is_protocol", False) else str(getattr(wanted, "__name__", wanted))
