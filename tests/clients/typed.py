"""What pydantic says of Python's types, and zod of its own, as answers: `python -m tests.clients.typed [FILE]`.

FILE (`-`: standard input) has lines of [name, JSON Schema], as `tests/clients/node/zod.mjs` writes them; without it the
types below. Each schema is compiled, or refused with a message that names a keyword of it. Of what is compiled some
documents are drawn at random, which pydantic must take (of FILE: jsonschema). Ends with 1 where one is not, or where a
refusal names nothing.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import ipaddress
import json
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import jsonschema
import numpy as np
from pydantic import (
    AnyUrl,
    AwareDatetime,
    Base64Str,
    BaseModel,
    ConfigDict,
    Field,
    FutureDate,
    Json,
    NegativeInt,
    NonNegativeFloat,
    PastDate,
    PositiveInt,
    RootModel,
    SecretStr,
    StrictBool,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    conlist,
    conset,
)  # fmt: skip
from typing_extensions import TypedDict

from swarm.base.errors import ModelError, UsageError
from swarm.model.grammars import from_schema
from swarm.model.held import Matcher
from tests.swarm.model.lettered import lettered, letters

MOST, FREE, EACH = 400, 30, 3
T = TypeVar("T")


class Colour(enum.Enum):
    RED, GREEN, BLUE = "red", "green", "blue"


class Level(enum.IntEnum):
    LOW, HIGH = 1, 9


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Person(Strict):
    name: str = Field(min_length=1, max_length=20)
    age: int = Field(ge=0, le=130)
    email: str | None = None


class Cat(Strict):
    kind: Literal["cat"]
    lives: PositiveInt


class Dog(Strict):
    kind: Literal["dog"]
    good: bool


class Tree(Strict):
    name: Annotated[str, Field(max_length=3)]
    below: list[Tree] = Field(max_length=2)


class Tagged(Strict):
    tags: set[str]
    numbers: frozenset[int] | None = None
    colours: set[Colour]


class Box(Strict, Generic[T]):
    held: T


class Open(BaseModel):
    first: int
    second: str


class Point(NamedTuple):
    x: float
    y: float


class Film(TypedDict):
    title: str
    year: int


@dataclass
class Plain:
    a: int
    b: bool = True


TYPES: Mapping[str, Any] = {
    str(kind): kind
    for kind in (
        bool, int, float, str, None, decimal.Decimal, dt.date, dt.datetime, dt.time, dt.timedelta, uuid.UUID,
        ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, bytes, Path, re.Pattern[str], complex,
        list[int], list[str], list[list[bool]], list[Any], tuple[int, str], tuple[int, ...], dict[str, int],
        dict[str, list[float]], dict[int, str], dict[Colour, int], dict[uuid.UUID, int], dict[dt.date, int],
        set[str], set[int], set[bool], set[Colour], set[Level], set[str | int], frozenset[str],
        set[Literal["a", "b", 3]],
        set[uuid.UUID], set[float], set[tuple[int, int]], set[dt.date],
        conset(str, min_length=2, max_length=4), conset(int, min_length=3), conlist(int, min_length=2, max_length=3),
        int | None, int | str, list[int | None], Literal["x", "y", 3, True, None], Colour, Level, Any,
        Annotated[str, Field(pattern="^[a-z]{2,5}$")], Annotated[str, Field(max_length=5)],
        Annotated[int, Field(gt=3, lt=12)], Annotated[int, Field(multiple_of=7)], Annotated[float, Field(ge=0, le=1)],
        Annotated[decimal.Decimal, Field(max_digits=5, decimal_places=2)], PositiveInt, NegativeInt, NonNegativeFloat,
        StrictInt, StrictStr, StrictBool, SecretStr, AnyUrl, Base64Str, AwareDatetime, PastDate, FutureDate, Json[Any],
        Person, Tree, Tagged, Open, Plain, Point, Film, Box[int], Box[list[Person]], list[Person], dict[str, Person],
        Cat | Dog, list[Annotated[Cat | Dog, Field(discriminator="kind")]], Person | None, Sequence[int], Iterable[str],
        RootModel[dict[str, Level]], tuple[Colour, Person], list[set[str]], dict[str, set[int]], Callable[[int], int],
    )
}  # fmt: skip
WORLDS = (
    "PastDate",
    "FutureDate",
    "Json",
    "Pattern",
    "Network",
    "Base64",
    "bytes",
    "Decimal",
    "complex",
    "Path",
    "AnyUrl",
)
WORLDS += ("timedelta", "dict[int")
"""Types that take less than their schema says: a document that fits the schema may be refused by them."""


def document(held: Matcher, random: Random) -> str | None:
    """A text that ended; None: it did not. Preferring what ends something after FREE tokens."""
    end, tokens = int(letters().eos_token_id), list[int]()
    closing = [letters().encode(mark)[0] for mark in '"}],']
    while len(tokens) < MOST:
        allowed = held.after(tokens)
        may = np.flatnonzero(allowed.mask(lettered().size)).tolist()
        late = len(tokens) > FREE
        plain = [token for token in may if lettered().spelt().bytes[token] in _PLAIN] if random.random() < 0.9 else []
        ends = [token for token in (end, *closing) if token in may] if late else []
        if (token := ends[0] if ends else random.choice(plain or may)) == end:
            return str(letters().decode(tokens, clean_up_tokenization_spaces=False))
        tokens.append(token)
    return None


_PLAIN = {bytes((byte,)) for byte in b'abcxyz019 "{}[],:-.@'}


def tried(schema: Any, check: Callable[[str], None], seed: int = 0) -> tuple[str, str]:
    """("held", "") or ("refused", why) or ("wrong", why)."""
    try:
        held = lettered().held(from_schema(schema))
    except UsageError as error:
        said = str(error)
        named = [key for key in _keys(schema) if re.search(rf"\b{re.escape(key)}\b", said.replace("\\", ""))]
        return ("refused" if named or "look-around" in said else "wrong"), said
    for number in range(EACH):
        try:
            text = document(held, Random(1000 * seed + number))
        except ModelError as error:
            return "wrong", str(error)
        if text is not None:
            try:
                check(text)
            except (ValidationError, ValueError, jsonschema.ValidationError) as error:
                return "wrong", f"{text[:200]}: {str(error)[:200]}"
    return "held", ""


def _keys(schema: Any) -> set[str]:
    if isinstance(schema, Mapping):
        return set(schema).union(*(_keys(below) for below in schema.values()))
    return set().union(*(_keys(below) for below in schema)) if isinstance(schema, list) else set()


def of_pydantic(kind: Any, seed: int = 0) -> tuple[str, str]:
    """What comes of one type."""
    adapter = TypeAdapter(kind)
    try:
        schema = adapter.json_schema()
    except Exception as error:  # pydantic has no schema for it
        return "no schema", str(error).splitlines()[0]
    less = any(word in f"{kind} {schema}" for word in WORLDS)

    def check(text: str) -> None:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
        if not less:
            adapter.validate_json(text)

    return tried(schema, check, seed)


def main() -> int:
    """Returns the exit code."""
    found: dict[str, list[str]] = {}
    if len(sys.argv) > 1:
        lines = sys.stdin if sys.argv[1] == "-" else Path(sys.argv[1]).read_text("utf-8").splitlines()
        for line in lines:
            name, schema = json.loads(line)
            # Python's patterns have no classes of Unicode.
            validator = jsonschema.Draft202012Validator({} if "\\p{" in str(schema) else schema)
            came, why = tried(schema, lambda text, validator=validator: validator.validate(json.loads(text)))
            found.setdefault(came, []).append(f"{name}: {why}"[:300])
    else:
        for seed, (name, kind) in enumerate(TYPES.items()):
            came, why = of_pydantic(kind, seed)
            found.setdefault(came, []).append(f"{name}: {why}"[:300])
    for came, names in found.items():
        print(f"{len(names)} {came}")
        if came != "held":
            print(*(f"  {name}" for name in names), sep="\n")
    return 1 if "wrong" in found else 0


if __name__ == "__main__":
    sys.exit(main())
