"""Whether documents that fit a JSON Schema can end: where a schema needs itself within itself none does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarm.base.errors import UsageError

_STEPS = 20_000
"""Schemas looked at. What takes more is left to the limit of the answer's length."""


def require_end(schema: Mapping[str, Any]) -> None:
    """Raises UsageError naming a reference that leads back to itself in every document."""
    look = _Look(schema)
    if look.steps and not look.ends(schema):
        found = sorted(look.met - look.good)
        raise UsageError(
            f"'$ref': expected a schema that has documents with an end, found one that needs itself: {found}"
        )


class _Look:
    """What is known of the references of one schema, from below: one ends when all that it needs ends."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self.steps = _STEPS
        self.good: set[str] = set()
        self.met: set[str] = set()
        self.ends(root)
        before = -1
        while self.steps and before < (before := len(self.met) + len(self.good)):
            self.good.update(name for name in sorted(self.met - self.good) if self.ends(self._named(name)))

    def ends(self, schema: Any) -> bool:
        """Whether it does by what is known so far."""
        self.steps = max(0, self.steps - 1)
        if not isinstance(schema, Mapping) or not self.steps or "const" in schema or "enum" in schema:
            return True
        if isinstance(name := schema.get("$ref"), str) and name.startswith("#"):
            self.met.add(name)
            if name not in self.good:
                return False
        parts = [part for part in _items(schema, "allOf") if not self.ends(part)]
        for key in ("anyOf", "oneOf"):
            ways = _items(schema, key)
            parts += ways[:1] if ways and not any([self.ends(way) for way in ways]) else []
        return not parts and all([self.ends(below) for below in _needed(schema)])

    def _named(self, name: str) -> Any:
        """What a reference names; true for what is not found here, which is for others to say."""
        found: Any = self._root
        for step in name[1:].split("/")[1:] if name[1:2] in ("", "/") else [name]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list):
                found = found[int(step)] if step.isdecimal() and int(step) < len(found) else True
            else:
                found = found.get(step, True) if isinstance(found, Mapping) else True
        return found


def _needed(schema: Mapping[str, Any]) -> list[Any]:
    """Schemas of what every document has, where all are objects or all are arrays."""
    if schema.get("type") in ("object", ["object"]):
        properties = schema.get("properties")
        known = properties if isinstance(properties, Mapping) else {}
        further = schema.get("additionalProperties")
        return [known.get(name, further) for name in _items(schema, "required") if isinstance(name, str)]
    if schema.get("type") in ("array", ["array"]):
        least, first = schema.get("minItems", 0), _items(schema, "prefixItems")
        if isinstance(least, int) and least > 0:
            return [*first[:least], *([schema.get("items")] if least > len(first) else [])]
    return []


def _items(schema: Mapping[str, Any], key: str) -> list[Any]:
    found = schema.get(key)
    return found if isinstance(found, list) else []
