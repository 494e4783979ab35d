"""What requests of other APIs have that means nothing here: left out before they are read, and named for the client.

Programs send tools of the servers that they were written for, and records of what those did, whatever server they
speak to. A conversation goes on without them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from swarm.serve.parse import ChatRequest


class LeftOut:
    """`names`: what was left out, as the client finds it in its own body: "tools[2].web_search"."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def of(self, items: Any, foreign: re.Pattern[str], path: str) -> Any:
        """The items whose `type` is none of these; whether they are right is for their reader to say."""
        if not isinstance(items, list):
            return items
        kept: list[Any] = []
        for index, item in enumerate(items):
            kind = item.get("type") if isinstance(item, dict) else None
            if isinstance(kind, str) and foreign.fullmatch(kind):
                self.names.append(f"{path}[{index}].{kind[:64]}")
            else:
                kept.append(item)
        return kept


def naming(parsed: ChatRequest, *names: Sequence[str]) -> ChatRequest:
    """The request, with more that nobody reads."""
    wanted = parsed.wanted
    return replace(
        parsed, wanted=replace(wanted, ignored=(*wanted.ignored, *(name for some in names for name in some)))
    )
