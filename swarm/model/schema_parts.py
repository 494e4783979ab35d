"""Words about parts of a JSON Schema that several readers of schemas share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOTES = frozenset("title description $comment default example examples deprecated readOnly writeOnly".split())
"""Keywords that say something to people alone."""
TYPES = ["null", "boolean", "number", "string", "array", "object"]
STANDARD_FORMATS = frozenset(
    "date-time date time duration email idn-email hostname idn-hostname ipv4 ipv6 uri uri-reference iri iri-reference "
    "uuid uri-template json-pointer relative-json-pointer regex".split()
)
"""Formats that the standard defines. Any other is a note to people, as it says."""


def named(root: Mapping[str, Any], reference: Any) -> Any:
    """The schema that a `$ref` within the document names; None for another, or where there is none."""
    if not root or not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    found: Any = root
    for step in reference.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or "%" in step or "$id" in found and found is not root:
            return None
        found = found.get(step)
    return found if isinstance(found, bool | Mapping) else None


def type_of(value: Any) -> str:
    """The JSON type of a value; whole numbers are numbers."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def listed(schema: Mapping[str, Any], key: str) -> list[Any]:
    """The list under a keyword; none where there is no list."""
    found = schema.get(key)
    return found if isinstance(found, list) else []
