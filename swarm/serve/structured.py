"""What an answer is to be held to, in the spellings of OpenAI, vLLM, SGLang and llama-server, as one constraint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.base.errors import UsageError
from swarm.model.constraint import Constraint
from swarm.model.grammars import from_choices, from_grammar, from_schema
from swarm.model.schemas import rebuilt
from swarm.serve.backend import Backend
from swarm.serve.body import describe, read, wrong
from swarm.serve.errors import bad_field
from swarm.serve.requests import NamedChoice, ResponseFormat, Structured

_PLAIN = "json_schema regex grammar ebnf guided_json guided_regex guided_choice guided_grammar".split()
MAX_CHOICES = 1024
_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class Structure:
    """What an answer is held to, and the field that asked for it."""

    constraint: Constraint
    param: str


def read_structure(
    request: Structured, tool_choice: Any = None, tools: Sequence[Mapping[str, Any]] = ()
) -> Structure | None:
    """The one constraint of a request; None: any text. `tools`: those on offer. Raises ApiError."""
    asked = {param: what for param, what in _asked(request)}
    calls = _calls(tool_choice, tools)
    if len(asked) > 1:
        raise bad_field(sorted(asked)[1], f"an answer is held to one thing; found {' and '.join(sorted(asked))}")
    if request.guided_whitespace_pattern is not None:
        why = "JSON is written with one space after each comma and colon; leave it out, or use a 'grammar'"
        raise bad_field("guided_whitespace_pattern", f"'guided_whitespace_pattern' is not supported: {why}")
    if calls is not None and calls[1] != "auto":
        if asked:
            raise bad_field(next(iter(asked)), f"with 'tool_choice' an answer is a call; leave out {next(iter(asked))}")
        return _made("tool_choice", "json_schema", calls[0])
    for param, (kind, value) in asked.items():
        if calls is not None and kind == "json_schema":  # as in OpenAI's API: a call, or an answer of this form
            value = _either(calls[0], value)
        return _made(param, kind, value)
    return None


async def check_structure(structure: Structure | None, backend: Backend, of: str | None = "") -> None:
    """Whether answers can be held to it. Raises ApiError 400 naming the field, within a second. `of`: for whom what is
    compiled is kept, as `RunRequest.prefix`."""
    compile_ = getattr(backend, "compile", None)
    if structure is None:
        return
    if compile_ is None:
        raise bad_field(structure.param, f"'{structure.param}' is not supported by this gateway's model")
    try:
        await compile_(structure.constraint, of)
    except UsageError as error:
        raise bad_field(structure.param, f"'{structure.param}': {error}", "invalid_schema") from error


def _asked(request: Structured) -> list[tuple[str, tuple[str, Any]]]:
    """(field, (kind, value)) for each that is given."""
    found: list[tuple[str, tuple[str, Any]]] = []
    for name in _PLAIN:
        if (value := getattr(request, name)) is not None:
            kind = name.removeprefix("guided_").replace("ebnf", "grammar")
            found.append((name, ("json_schema" if kind == "json" else kind, value)))
    for name, given in (request.structured_outputs or {}).items():
        if given is None or given is False:
            continue
        shown = "structured_outputs." + name[:80].encode("utf-8", "replace").decode()
        if name not in ("json", "regex", "choice", "grammar", "json_object"):
            raise bad_field(shown, f"'{shown}' is not supported", "unsupported_parameter")
        kind = "json_schema" if name.startswith("json") else name
        found.append((shown, (kind, _OBJECT if name == "json_object" else given)))
    return found if request.response_format is None else [*found, *_format(request.response_format)]


def _format(asked: ResponseFormat) -> list[tuple[str, tuple[str, Any]]]:
    kind, inner = asked.type, asked.json_schema
    if kind == "text":
        return []
    if kind == "json_object":
        return [("response_format", ("json_schema", _OBJECT if asked.schema is None else asked.schema))]
    if kind == "json_schema":
        if inner is None and asked.schema is not None:  # llama-server
            return [("response_format.schema", ("json_schema", asked.schema))]
        if inner is None:
            raise wrong("response_format.json_schema", "a JSON object", None)
        schema = _OBJECT if inner.schema is None else inner.schema
        return [("response_format.json_schema.schema", ("json_schema", schema))]
    if kind == "grammar":
        return [("response_format.grammar", ("grammar", asked.grammar))]
    raise bad_field(
        "response_format.type",
        f"expected 'response_format.type' to be text, json_object, json_schema or grammar, found {kind[:80]!r}",
        "unsupported_parameter",
    )


def _made(param: str, kind: str, value: Any) -> Structure:
    """Raises ApiError for a value that is no such constraint."""
    try:
        if kind == "json_schema":
            return Structure(_schema(param, value), param)
        if kind == "choice":
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise bad_field(param, f"expected '{param}' to be an array of strings", "invalid_type")
            if len(value) > MAX_CHOICES:
                raise bad_field(param, f"expected at most {MAX_CHOICES} choices in '{param}', found {len(value)}")
            return Structure(from_choices(value), param)
        if not isinstance(value, str):
            raise bad_field(param, f"expected '{param}' to be a string, found {describe(value)}", "invalid_type")
        made = Constraint("regex", value) if kind == "regex" else from_grammar(value)
        return Structure(made, param)
    except UsageError as error:
        raise bad_field(param, f"'{param}': {error}", "invalid_schema") from error


def _schema(param: str, value: Any) -> Constraint:
    """A schema as an object, or as its text (llama-server, vLLM)."""
    if not isinstance(value, dict | bool | str):
        raise bad_field(param, f"expected '{param}' to be a JSON Schema, found {describe(value)}", "invalid_type")
    return from_schema(value)


def _calls(choice: Any, tools: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], str] | None:
    """A schema of one call of the tools that may be chosen, and whether one must be made ("required" or "auto")."""
    if choice in (None, "auto", "none"):
        return (_call_of(tools), "auto") if tools and choice != "none" else None
    if choice == "required":
        if not tools:
            raise bad_field("tool_choice", "'tool_choice': \"required\" needs 'tools'")
        return _call_of(tools), "required"
    name = read(NamedChoice, {"tool_choice": choice}).tool_choice.function.name
    chosen = [tool for tool in tools if tool["function"]["name"] == name]
    if not chosen:
        raise bad_field("tool_choice.function.name", f"'tool_choice' names no tool on offer: {name[:80]!r}")
    return _call_of(chosen), "required"


def _call_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The schema of {"name": ..., "arguments": ...}: how a call is written that is the whole answer."""
    schemas = {f"tool{index}": _arguments(tool["function"]["parameters"]) for index, tool in enumerate(tools)}
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": {"$ref": f"#/$defs/tool{index}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for index, tool in enumerate(tools)
    ]
    moved = {name: _moved(schema, f"#/$defs/{name}") for name, schema in schemas.items()}
    return {"anyOf": calls, "$defs": moved}


def _arguments(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a tool takes; one that names no parameter takes none."""
    return {**schema, "additionalProperties": False} if schema == {"type": "object", "properties": {}} else schema


def _either(calls: Mapping[str, Any], answer: Any) -> Any:
    """The schema of a call or of an answer."""
    if not isinstance(answer, dict):
        return answer
    defs = {**calls["$defs"], "answer": _moved(answer, "#/$defs/answer")}
    return {"anyOf": [*calls["anyOf"], {"$ref": "#/$defs/answer"}], "$defs": defs}


def _moved(schema: Any, to: str) -> Any:
    """A schema that stands at `to` instead of at the root: what it says of its own parts still finds them. Below an
    `$id` it says so of what has that name, wherever it stands."""
    if not isinstance(schema, dict) or isinstance(schema.get("$id"), str):
        return schema
    made = rebuilt(schema, lambda below: _moved(below, to))
    if isinstance(name := made.get("$ref"), str) and (name == "#" or name.startswith("#/")):
        made["$ref"] = to + name[1:]
    return made
