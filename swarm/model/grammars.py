"""Constraints as the engine (llguidance) takes them, and what reading one may cost."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits

from swarm.base.errors import UsageError
from swarm.model.constraint import MAX_CHARS, Constraint, Kind
from swarm.model.distinct_places import apart
from swarm.model.gbnf import lark_of
from swarm.model.schema_ends import require_end
from swarm.model.schemas import exact

_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a value: the spaces that models write by themselves, and no choice, so that all but the values of an
answer is forced. A schema may say otherwise for itself (`x-guidance`)."""
_LARK = re.compile(r"(?m)^[^\S\n]*(?:%llguidance\b|start\s*:(?!:=))")
"""How a grammar begins a line that is Lark's."""


def grammar_of(constraint: Constraint) -> str:
    """The constraint as llguidance takes it. Raises UsageError for what is no JSON."""
    match constraint.kind:
        case "json_schema":
            try:
                return LLMatcher.grammar_from_json_schema(apart(constraint.text)[0], defaults=_JSON)  # type: ignore[arg-type]
            except (ValueError, RecursionError) as error:
                raise UsageError(f"expected a JSON Schema, found what cannot be read: {str(error)[:200]}") from None
        case "regex":
            return LLMatcher.grammar_from_regex(constraint.text)
        case "lark":
            return LLMatcher.grammar_from_lark(constraint.text)


def from_schema(schema: object) -> Constraint:
    """An answer that is JSON and fits this JSON Schema, or the schema whose text this is.

    Raises UsageError for what is too large, nested too deep, or not to be held to, naming the keyword.
    """
    try:
        text = schema if isinstance(schema, str) else _json(schema)
        if (size := len(text.encode("utf-8", "replace"))) > MAX_CHARS:
            raise UsageError(f"expected a JSON Schema of at most {MAX_CHARS} bytes, found {size}")
        made = exact(json.loads(text))
        require_end(made)
        return Constraint("json_schema", _json(made))
    except (ValueError, TypeError) as error:
        raise UsageError(f"expected a JSON Schema, found what is no JSON: {str(error)[:200]}") from None
    except RecursionError:
        raise UsageError("expected a JSON Schema, found one that is nested too deep") from None


def _json(schema: object) -> str:
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def from_grammar(text: str) -> Constraint:
    """An answer in a grammar, written in llama.cpp's GBNF or in llguidance's Lark. Raises UsageError."""
    if len(text) > MAX_CHARS:
        raise UsageError(f"expected a grammar of at most {MAX_CHARS} characters, found {len(text)}")
    return Constraint("lark", text if _LARK.search(text) else lark_of(text))


def from_choices(choices: Sequence[str]) -> Constraint:
    """An answer that is one of these texts. Raises UsageError."""
    if not choices or not all(choices):
        raise UsageError("expected at least one choice, none of them empty")
    return Constraint("lark", "start: " + " | ".join(json.dumps(choice) for choice in choices))


def bounds() -> LLParserLimits:
    """What reading a grammar, and one mask of it, may take. In counts, not in time: all come to the same end."""
    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_lexer_states=50_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def refusal_of(kind: Kind, error: str) -> str:
    """The engine's own refusal in one line."""
    said = " ".join(error.replace("<non-verbose/>", "").split())[:400] or "no reason given"
    if kind == "json_schema" and said.startswith("Resource "):
        said = f"'$ref' or '$schema': {said}"
    if "Current row has" in said:
        said = f"too many members or alternatives may come at one place; require some of them ({said})"
    return f"the {kind.replace('lark', 'grammar')} cannot be compiled: {said}"
