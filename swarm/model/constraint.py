"""What an answer is held to: a JSON Schema, a regular expression or a grammar, as it stands in the order of a run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Annotated, Literal, get_args

from swarm.base.bounds import AtMost, Between, by_name
from swarm.base.errors import UsageError

Kind = Literal["json_schema", "regex", "lark"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_CHARS = 32_768
"""Bytes of a constraint: it travels in the order of a run, and stands in its receipt."""


@cache
def engine() -> str:
    """Whose reading of constraints this program follows, with its version: another one may allow other tokens."""
    return f"llguidance {version('llguidance')}"


@by_name(others="refused")
@dataclass(frozen=True)
class Constraint:
    """What an answer is held to.

    kind        of `text`: a JSON Schema, a regular expression (Rust's `regex`), or a grammar in llguidance's Lark
    engine      whose reading of it counts, with its version
    vocabulary  hex SHA-256 of the tokens that spell it (`Vocabulary.digest`)
    after       how many tokens come before the first one that is held to it: the prompt's
    """

    kind: Kind
    text: Annotated[str, AtMost(MAX_CHARS, least=1)]
    engine: Annotated[str, AtMost(100)] = ""
    vocabulary: Annotated[str, AtMost(100)] = ""
    after: Annotated[int, Between(0, 2**31 - 1)] = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"expected a constraint of kind {', '.join(KINDS)}, found {self.kind!r:.40}")
        if not isinstance(self.text, str) or not 0 < _bytes(self.text) <= MAX_CHARS:
            found = _bytes(self.text) if isinstance(self.text, str) else type(self.text).__name__
            raise UsageError(f"expected a constraint of 1 to {MAX_CHARS} bytes of text, found {found}")
        if not all(isinstance(said, str) and len(said) <= 100 for said in (self.engine, self.vocabulary)):
            raise UsageError("expected the engine and vocabulary of a constraint as short texts")
        if type(self.after) is not int or not 0 <= self.after < 2**31:
            raise UsageError(f"expected a number of tokens before the constraint, found {self.after!r:.40}")


def _bytes(text: str) -> int:
    """Of its UTF-8; none for what has none (half of a surrogate pair)."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0
