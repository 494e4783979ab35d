"""Typed reading of a JSON body. Each refusal names the field and says what was found in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from swarm.serve.errors import ApiError, bad_field

_NAMES = {str: "a string", bool: "a boolean", int: "an integer", float: "a number", list: "an array", dict: "an object"}


def describe(value: object) -> str:
    """The JSON name of a value's type."""
    return "null" if value is None else _NAMES.get(type(value), type(value).__name__)


def parse_json_untrusted(data: bytes) -> Any:
    """Body to JSON value. Raises ApiError 400 for anything that is not strict JSON in UTF-8."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(data.decode("utf-8"), parse_constant=refuse)
    except UnicodeDecodeError as exc:
        raise ApiError(400, f"expected a body in UTF-8, found byte {exc.start} that is not", "invalid_json") from exc
    except RecursionError as exc:
        raise ApiError(400, "the body is nested too deeply", "invalid_json") from exc
    except ValueError as exc:
        raise ApiError(400, f"expected a JSON body, found: {exc}", "invalid_json") from exc


class Fields:
    """One JSON object being read; `where` is its address for messages, e.g. "messages[0]".

    Optional fields read null as absent, as OpenAI's API does.
    """

    def __init__(self, value: Any, where: str = "") -> None:
        if not isinstance(value, dict):
            name = f"'{where}'" if where else "the body"
            raise bad_field(where, f"expected {name} to be a JSON object, found {describe(value)}", "invalid_type")
        self.values: Mapping[str, Any] = value
        self.where = where

    def path(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def wrong(self, name: str, expected: str) -> ApiError:
        found = describe(self.values.get(name))
        return bad_field(
            self.path(name), f"expected '{self.path(name)}' to be {expected}, found {found}", "invalid_type"
        )

    def outside(self, name: str, expected: str) -> ApiError:
        found = repr(self.values.get(name))[:80]
        return bad_field(self.path(name), f"expected '{self.path(name)}' to be {expected}, found {found}")

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def beyond(self, known: frozenset[str], strict: bool) -> tuple[str, ...]:
        """Names that nobody reads, for the client to be told of. Refused when `strict`."""
        if strict:
            self.only(known)
        return tuple(self.path(name) for name in self.values if name not in known)

    def only(self, known: frozenset[str]) -> None:
        """Refuse names that nobody reads: a misspelt option must not be ignored in silence."""
        for name in self.values:
            if name not in known:
                shown = name[:80].encode("utf-8", "replace").decode()
                raise bad_field(self.path(shown), f"unknown field '{self.path(shown)}'", "unknown_parameter")

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return clean_text(value, self.path(name))

    def need_text(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise self.wrong(name, "a string")
        return value

    def choice(self, name: str, allowed: Sequence[str], default: str) -> str:
        value = self.text(name) or default
        if value not in allowed:
            raise self.outside(name, "one of " + ", ".join(allowed))
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "an integer")
        if not low <= value <= high:
            raise self.outside(name, f"between {low} and {high}")
        return value

    def number(self, name: str, default: float, low: float, high: float, above: bool = False) -> float:
        """`above`: the lower bound itself is excluded."""
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        if not (low < value if above else low <= value) or not value <= high or not math.isfinite(value):
            raise self.outside(name, f"{'above' if above else 'at least'} {low:g} and at most {high:g}")
        return float(value)

    def array(self, name: str, most: int) -> list[Any] | None:
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.wrong(name, "an array")
        if len(value) > most:
            raise bad_field(
                self.path(name), f"expected at most {most} items in '{self.path(name)}', found {len(value)}"
            )
        return value


def clean_text(value: str, path: str) -> str:
    """Refuse lone surrogates: JSON can spell them, UTF-8 cannot."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise bad_field(path, f"'{path}' holds half of a surrogate pair at character {exc.start}") from exc
    return value
