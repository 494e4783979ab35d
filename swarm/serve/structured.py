"""What an answer is to be held to, in the spellings of OpenAI, vLLM, SGLang and llama-server, as one constraint."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.base.errors import UsageError
from swarm.model.constraint import Constraint
from swarm.model.grammars import from_choices, from_grammar, from_schema
from swarm.serve.backend import Backend
from swarm.serve.errors import bad_field
from swarm.serve.fields import Fields, describe

_PLAIN = "json_schema regex grammar ebnf guided_json guided_regex guided_choice guided_grammar".split()
STRUCTURED = frozenset(
    [*_PLAIN, "response_format", "structured_outputs", "guided_decoding_backend", "guided_whitespace_pattern"]
)
"""Fields that ask for structure, beside `tool_choice`."""
MAX_CHOICES = 1024
_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class Structure:
    """What an answer is held to, and the field that asked for it."""

    constraint: Constraint
    param: str


def read_structure(fields: Fields, tools: Sequence[Mapping[str, Any]] = ()) -> Structure | None:
    """The one constraint of a request; None: any text. `tools`: those on offer. Raises ApiError."""
    asked = {param: what for param, what in _asked(fields)}
    calls = _calls(fields, tools)
    if len(asked) > 1:
        raise bad_field(sorted(asked)[1], f"an answer is held to one thing; found {' and '.join(sorted(asked))}")
    if fields.get("guided_whitespace_pattern") is not None:
        why = "JSON is written with one space after each comma and colon; leave it out, or use a 'grammar'"
        raise bad_field("guided_whitespace_pattern", f"'guided_whitespace_pattern' is not supported: {why}")
    fields.text("guided_decoding_backend")  # any reads these constraints alike
    if calls is not None and calls[1] != "auto":
        if asked:
            raise bad_field(next(iter(asked)), f"with 'tool_choice' an answer is a call; leave out {next(iter(asked))}")
        return _made("tool_choice", "json_schema", calls[0])
    for param, (kind, value) in asked.items():
        if calls is not None and kind == "json_schema":  # as in OpenAI's API: a call, or an answer of this form
            value = _either(calls[0], value)
        return _made(param, kind, value)
    return None


async def check_structure(structure: Structure | None, backend: Backend) -> None:
    """Whether answers can be held to it. Raises ApiError 400 naming the field, within a second."""
    compile_ = getattr(backend, "compile", None)
    if structure is None:
        return
    if compile_ is None:
        raise bad_field(structure.param, f"'{structure.param}' is not supported by this gateway's model")
    try:
        await asyncio.to_thread(compile_, structure.constraint)
    except UsageError as error:
        raise bad_field(structure.param, f"'{structure.param}': {error}", "invalid_schema") from error


def _asked(fields: Fields) -> list[tuple[str, tuple[str, Any]]]:
    """(field, (kind, value)) for each that is given."""
    found: list[tuple[str, tuple[str, Any]]] = []
    for name in _PLAIN:
        if fields.get(name) is not None:
            kind = name.removeprefix("guided_").replace("ebnf", "grammar")
            found.append((name, ("json_schema" if kind == "json" else kind, fields.get(name))))
    if (value := fields.get("structured_outputs")) is not None:
        inner = Fields(value, "structured_outputs")
        for name in inner.values:
            if name in ("json", "regex", "choice", "grammar", "json_object"):
                given = inner.get(name)
                if given is not None and given is not False:
                    kind = "json_schema" if name.startswith("json") else name
                    found.append((inner.path(name), (kind, _OBJECT if name == "json_object" else given)))
            elif inner.get(name) not in (None, False):
                shown = name[:80].encode("utf-8", "replace").decode()
                raise bad_field(inner.path(shown), f"'{inner.path(shown)}' is not supported", "unsupported_parameter")
    if (value := fields.get("response_format")) is not None:
        found += _format(Fields(value, "response_format"))
    return found


def _format(fields: Fields) -> list[tuple[str, tuple[str, Any]]]:
    kind = fields.need_text("type")
    if kind == "text":
        return []
    if kind == "json_object":
        schema = fields.get("schema")
        return [("response_format", ("json_schema", _OBJECT if schema is None else schema))]
    if kind == "json_schema":
        if fields.get("json_schema") is None and fields.get("schema") is not None:  # llama-server
            return [("response_format.schema", ("json_schema", fields.get("schema")))]
        inner = Fields(fields.get("json_schema"), "response_format.json_schema")
        inner.text("name")
        inner.flag("strict")  # held to it either way
        schema = inner.get("schema")
        return [("response_format.json_schema.schema", ("json_schema", _OBJECT if schema is None else schema))]
    if kind == "grammar":
        return [("response_format.grammar", ("grammar", fields.get("grammar")))]
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
    if isinstance(value, str):
        return Constraint("json_schema", value)
    if not isinstance(value, dict | bool):
        raise bad_field(param, f"expected '{param}' to be a JSON Schema, found {describe(value)}", "invalid_type")
    return from_schema(value)


def _calls(fields: Fields, tools: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], str] | None:
    """A schema of one call of the tools that may be chosen, and whether one must be made ("required" or "auto")."""
    choice = fields.get("tool_choice")
    if choice in (None, "auto", "none"):
        return (_call_of(tools), "auto") if tools and choice != "none" else None
    if choice == "required":
        if not tools:
            raise bad_field("tool_choice", "'tool_choice': \"required\" needs 'tools'")
        return _call_of(tools), "required"
    named = Fields(choice, "tool_choice")
    if named.need_text("type") != "function":
        raise named.outside("type", "function")
    name = Fields(named.get("function"), "tool_choice.function").need_text("name")
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
    """A schema that stands at `to` instead of at the root: what it says of its own parts still finds them."""
    if isinstance(schema, list):
        return [_moved(item, to) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: to + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else value
        if key in ("const", "enum", "default", "examples")
        else _moved(value, to)
        for key, value in schema.items()
    }
