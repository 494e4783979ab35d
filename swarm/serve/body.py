"""From bytes to the typed description of a request (`swarm.serve.requests`), and from that to JSON Schema.

msgspec checks types and bounds; what it finds is told in our words, with the field named as OpenAI's clients expect it.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, TypeVar

import msgspec

from swarm.serve.errors import ApiError, bad_field

_NAMES = {str: "a string", bool: "a boolean", int: "an integer", float: "a number", list: "an array", dict: "an object"}
_WANTED = {
    "str": "a string",
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "array": "an array",
    "object": "a JSON object",
}
_FAULT = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)
_STEP = re.compile(r"[^.\[\]]+|\[\d+\]")
_REF = "#/components/schemas/"
MOST_ITEMS_TOLD = 64
"""Longer bounds of arrays guard memory and are told in words: generated tests would build megabytes to cross them."""

MAX_OPENED = 100_000
"""Objects and arrays in a body: each costs far more than its two letters."""

T = TypeVar("T")
Json = dict[str, Any]


def describe(value: object) -> str:
    """The JSON name of a value's type."""
    kind: type = dict if isinstance(value, msgspec.Struct) else type(value)
    return "null" if value is None else _NAMES.get(kind, kind.__name__)


def parse_json_untrusted(data: bytes) -> Any:
    """Body to JSON value. Raises ApiError 400 for anything that is not strict JSON in UTF-8."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    def number(text: str) -> float:
        if math.isinf(value := float(text)):  # an answer that repeats it would be no JSON
            raise ValueError(f"{text[:40]} is beyond what a number can hold")
        return value

    try:
        found = json.loads(data.decode("utf-8"), parse_constant=refuse, parse_float=number)
    except UnicodeDecodeError as exc:
        raise ApiError(400, f"expected a body in UTF-8, found byte {exc.start} that is not", "invalid_json") from exc
    except RecursionError as exc:
        raise ApiError(400, "the body is nested too deeply", "invalid_json") from exc
    except ValueError as exc:
        raise ApiError(400, f"expected a JSON body, found: {exc}", "invalid_json") from exc
    if opened(data) > MAX_OPENED and _opened_in(found) > MAX_OPENED:
        raise ApiError(400, f"expected at most {MAX_OPENED} objects and arrays in a body", "invalid_json")
    return found


def opened(data: bytes | bytearray) -> int:
    """How many objects and arrays a body has at most: brackets in its texts count too."""
    return data.count(b"[") + data.count(b"{")


def _opened_in(value: Any) -> int:
    found, rest = 0, [value]
    while rest:
        one = rest.pop()
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else None
        if inner is not None:
            found += 1
            rest += [each for each in inner if isinstance(each, dict | list)]
    return found


def read(kind: type[T], body: Any) -> T:
    """A JSON value as `kind`, a msgspec Struct. Raises ApiError 400 that names the field at fault.

    Whole numbers may be spelt 3.0. Half of a surrogate pair is refused: JSON can spell it, UTF-8 cannot.
    """
    while True:
        try:
            found = msgspec.convert(body, kind)
            break
        except msgspec.ValidationError as exc:
            fault, path = _fault(exc)
            value = body.get(path) if isinstance(body, dict) else None
            if not (fault.startswith("Expected `int") and type(value) is float and value.is_integer()):
                raise _refusal(kind, body, fault, path) from exc
            body = {**body, path: int(value)}
        except UnicodeEncodeError:  # msgspec stumbles where such text stands for another type, or names a field
            raise _broken_text(body) from None
    _check_text(found, "")
    return found


def names(kind: type[msgspec.Struct]) -> frozenset[str]:
    """The fields of a request."""
    return frozenset(kind.__struct_encode_fields__)


def beyond(kind: type[msgspec.Struct], body: Any, strict: bool) -> tuple[str, ...]:
    """Names that nobody reads, for the client to be told of. Refused when `strict`: a misspelt option does nothing."""
    unknown = tuple(name for name in body if name not in names(kind))
    if unknown and strict:
        raise _unknown(unknown[0])
    return unknown


def wrong(path: str, expected: str, value: Any) -> ApiError:
    """The refusal of a value of the wrong type."""
    return bad_field(path, f"expected '{path}' to be {expected}, found {describe(value)}", "invalid_type")


def outside(path: str, expected: str, value: Any) -> ApiError:
    """The refusal of a value beyond its bounds."""
    return bad_field(path, f"expected '{path}' to be {expected}, found {_shown(value)}")


def clean_text(value: str, path: str) -> str:
    """Refuse lone surrogates."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise bad_field(path, f"'{path}' holds half of a surrogate pair at character {exc.start}") from exc
    return value


def schemas_of(*kinds: type[msgspec.Struct]) -> Json:
    """JSON Schemas of requests and of what they are made of, by name, as OpenAPI's components hold them."""
    _, found = msgspec.json.schema_components(kinds, ref_template=_REF + "{name}")
    return {name: _tidy(schema) for name, schema in found.items()}


def _check_text(value: Any, path: str) -> None:
    """Values that are not described (schemas of tools) have their own check."""
    if isinstance(value, str):
        clean_text(value, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_text(item, f"{path}[{index}]")
    elif isinstance(value, msgspec.Struct):
        for name, inner in zip(value.__struct_encode_fields__, msgspec.structs.astuple(value), strict=True):
            if type(inner) is not dict:
                _check_text(inner, f"{path}.{name}" if path else name)


def _broken_text(body: Any) -> ApiError:
    """The refusal of a body with half of a surrogate pair in a text or in a name."""
    rest = [("", body)]
    while rest:
        path, value = rest.pop()
        try:
            if isinstance(value, str):
                clean_text(value, path)
            elif isinstance(value, dict):
                for name, inner in value.items():
                    clean_text(name, path)
                    rest.append((f"{path}.{name}" if path else name, inner))
            elif isinstance(value, list):
                rest += [(f"{path}[{index}]", inner) for index, inner in enumerate(value)]
        except ApiError as error:
            return error
    return bad_field("", "expected text in UTF-8")


def _fault(error: msgspec.ValidationError) -> tuple[str, str]:
    """What msgspec found, and where: "messages[0].role"."""
    matched = _FAULT.fullmatch(str(error))
    assert matched is not None
    return matched[1], matched[2] or ""


def _refusal(kind: type[Any], body: Any, fault: str, path: str) -> ApiError:
    name = fault.partition("`")[2].rpartition("`")[0]
    if fault.startswith("Object missing required field"):
        fault, path = "", f"{path}.{name}" if path else name
    if fault.startswith("Object contains unknown field"):
        return _unknown(f"{path}.{name}" if path else name)
    schema, value = _schema_at(kind, path), _value_at(body, path)
    outer = path.rpartition("[")[0] if path.endswith("]") else ""
    if schema == [{"type": "integer"}] and outer:  # of many ids the array is named
        return wrong(outer, "an array of token ids", _value_at(body, outer))
    if not path:
        return bad_field("", f"expected the body to be a JSON object, found {describe(value)}", "invalid_type")
    if fault.startswith("Expected") and ", got `" not in fault or fault.startswith("Invalid"):
        return _out_of_bounds(path, schema, value)
    wanted = [_WANTED.get(one, one) for one in name.partition("`")[0].split(" | ") if one != "null"]
    if not fault:
        wanted = list(dict.fromkeys(_WANTED[_spelt(one)] for one in schema if one.get("type") != "null"))
    return wrong(path, " or ".join(wanted), value)


def _spelt(schema: Json) -> str:
    kinds = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "array": "array"}
    return "str" if "enum" in schema else kinds.get(str(schema.get("type")), "object")


def _out_of_bounds(path: str, schemas: list[Json], value: Any) -> ApiError:
    if isinstance(value, list):
        for schema in schemas:
            low, high = schema.get("minItems", 0), schema.get("maxItems")
            if high is not None and len(value) > high:
                return bad_field(path, f"expected at most {high} items in '{path}', found {len(value)}")
            if len(value) < low:
                return bad_field(path, f"expected at least {low} item in '{path}', found an empty array")
    for schema in schemas:
        if isinstance(value, str) and "enum" in schema:
            told = schema["enum"]
            return outside(path, ("one of " if len(told) > 1 else "") + ", ".join(map(str, told)), value)
        if isinstance(value, str) and "maxLength" in schema:
            return outside(path, f"{schema.get('minLength', 0)} to {schema['maxLength']} characters long", value)
        low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
        if schema.get("type") == "integer" and high is not None:
            return outside(path, f"between {low} and {high}", value)
        if low is not None:
            least = f"{'above' if 'exclusiveMinimum' in schema else 'at least'} {low:g}"
            return outside(path, least if high is None else f"{least} and at most {high:g}", value)
    return outside(path, "another value", value)


def _unknown(path: str) -> ApiError:
    shown = path[-120:].encode("utf-8", "replace").decode()
    return bad_field(shown, f"unknown field '{shown}'", "unknown_parameter")


def _shown(value: Any) -> str:
    return repr(value)[:80].encode("utf-8", "replace").decode()


def _value_at(body: Any, path: str) -> Any:
    for step in _STEP.findall(path):
        if step.startswith("["):
            index = int(step[1:-1])
            body = body[index] if isinstance(body, list) and index < len(body) else None
        else:
            body = body.get(step) if isinstance(body, dict) else None
    return body


def _schema_at(kind: type[Any], path: str) -> list[Json]:
    """The schemas that a value at `path` may have."""
    (root,), parts = msgspec.json.schema_components([kind], ref_template="{name}")

    def alternatives(schemas: list[Json]) -> list[Json]:
        found: list[Json] = []
        for schema in schemas:
            if "$ref" in schema:
                found += alternatives([parts[schema["$ref"]]])
            elif "anyOf" in schema:
                found += alternatives(schema["anyOf"])
            else:
                found.append(schema)
        return found

    here = alternatives([root])
    for step in _STEP.findall(path):
        key = "items" if step.startswith("[") else "properties"
        inner = [schema[key] for schema in here if key in schema]
        here = alternatives([each.get(step, {}) for each in inner] if key == "properties" else inner)
    merged = [str(word) for schema in here for word in schema.get("enum", ())]
    return [{"enum": merged}] if merged else here


def _tidy(schema: Any) -> Any:
    """Without what says nothing: titles, "default: null"."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidy: Json = {
        key: {name: _tidy(inner) for name, inner in value.items()} if key == "properties" else _tidy(value)
        for key, value in schema.items()
        if key != "title" and not (key == "default" and value is None)
    }
    if tidy.get("maxItems", 0) > MOST_ITEMS_TOLD:
        tidy["description"] = f"at most {tidy.pop('maxItems')}"
    return tidy
