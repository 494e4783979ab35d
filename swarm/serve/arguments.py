"""Arguments of calls as objects. What a model writes may be none; nothing of it is lost then, and nothing fails.

OpenAI's APIs have arguments as text, letter for letter. Anthropic's and Ollama's have an object, and so do chat
templates: what is none comes as a member that has the text, and an object with such a member is that text again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

RAW = "raw_arguments"
"""The member that has arguments as they were written."""
MAX_DEPTH = 32


def for_template(written: str) -> dict[str, Any]:
    """The object that is written, or one that has the text; of nothing an empty one."""
    if not written.strip():
        return {}
    found = _object(written)
    return {RAW: written} if found is None else found


def for_client(written: str) -> dict[str, Any]:
    """What `ObjectStream` tells in all."""
    stream = ObjectStream()
    told: dict[str, Any] = json.loads(stream.feed(written) + stream.finish())
    return told


def text_of(value: Mapping[str, Any] | None) -> str:
    """An object that came back, as JSON or as the text that it stands for."""
    raw = (value or {}).get(RAW)
    return raw if isinstance(raw, str) else json.dumps(value or {}, ensure_ascii=False)


class ObjectStream:
    """Arguments that are still being written, told so that all that was told is one JSON object, however it ends.

    A member is told once it is whole, as Anthropic's API does by default. Behind one that is none nothing is told until
    the end, when all that was written comes as a member of its own.
    """

    def __init__(self) -> None:
        self._written = ""
        self._at, self._told = 0, 0
        self._depth, self._quoted, self._escaped = 0, False, False
        self._begun = self._broken = False

    def feed(self, text: str) -> str:
        """What can be told now."""
        self._written += text
        told = ""
        while self._at < len(self._written) and not self._broken:
            char = self._written[self._at]
            self._at += 1
            if not self._told:
                self._told = self._at if char == "{" else 0
                self._broken = char != "{" and not char.isspace()
            if self._step(char):
                told += self._member(self._written[self._told : self._at - 1])
                self._told = self._at
        return told

    def finish(self) -> str:
        """The rest of the object."""
        if not self._written.strip():
            return "{}"
        if not self._broken and _object(self._written) is not None:
            rest = self._written[self._told :].rstrip()
            return (self._member(rest[:-1]) or ("" if self._begun else "{")) + "}"
        return self._joined({RAW: self._written}) + "}"

    def _step(self, char: str) -> bool:
        """Whether a member ended."""
        if self._quoted:
            self._quoted, self._escaped = self._escaped or char != '"', not self._escaped and char == "\\"
        elif char == '"':
            self._quoted = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
        return char == "," and self._depth == 1 and not self._quoted

    def _member(self, written: str) -> str:
        found = _object("{" + written + "}")
        if not found:
            self._broken = found is None or bool(written.strip()) or self._depth == 1
            return ""
        return self._joined(found)

    def _joined(self, members: Mapping[str, Any]) -> str:
        begin, self._begun = ", " if self._begun else "{", True
        return begin + json.dumps(members, ensure_ascii=False)[1:-1]


def _object(written: str) -> dict[str, Any] | None:
    """None for what is no JSON object, or no client could read: too deep, no text in UTF-8, numbers beyond a float."""
    try:
        found = json.loads(written, strict=False, parse_constant=_refuse)
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and _fits(found) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _fits(value: Any, depth: int = 0) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth <= MAX_DEPTH and all(_fits(item, depth + 1) for item in inner)
