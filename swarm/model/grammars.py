"""Constraints as the engine (llguidance) takes them, and what reading one may cost."""

from __future__ import annotations

import json
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits
from llguidance.gbnf_to_lark import any_to_lark

from swarm.base.errors import UsageError
from swarm.model.constraint import MAX_CHARS, Constraint, Kind
from swarm.model.schemas import exact

_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a value: the spaces that models write by themselves, and no choice, so that all but the values of an
answer is forced. A schema may say otherwise for itself (`x-guidance`)."""


def grammar_of(constraint: Constraint) -> str:
    """The constraint as llguidance takes it. Raises UsageError for what is no JSON."""
    match constraint.kind:
        case "json_schema":
            try:
                return LLMatcher.grammar_from_json_schema(constraint.text, defaults=_JSON)  # type: ignore[arg-type]
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
        if isinstance(schema, str):
            if len(schema) > MAX_CHARS:
                raise UsageError(f"expected a JSON Schema of at most {MAX_CHARS} bytes, found {len(schema)}")
            schema = json.loads(schema)
        text = json.dumps(exact(schema), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return Constraint("json_schema", text)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"expected a JSON Schema, found what is no JSON: {str(error)[:200]}") from None


def from_grammar(text: str) -> Constraint:
    """An answer in a grammar, written in llama.cpp's GBNF or in llguidance's Lark. Raises UsageError."""
    if len(text) > MAX_CHARS:
        raise UsageError(f"expected a grammar of at most {MAX_CHARS} characters, found {len(text)}")
    try:
        return Constraint("lark", any_to_lark(text))
    except (
        Exception
    ) as error:  # what the reader finds wrong as a whole it raises as nothing more: no root, an empty text
        raise UsageError(f"the grammar cannot be read: {str(error)[:300] or 'it is nested too deep'}") from None


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
    return f"the {kind.replace('lark', 'grammar')} cannot be compiled: {said}"
