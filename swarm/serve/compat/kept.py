"""Answers kept for the next turn of a conversation: in memory, bounded, each for the user who asked."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KeptAnswer:
    """`messages`: the conversation so far, the answer included. `body`: the answer as it was sent."""

    user: str
    messages: Sequence[dict[str, Any]]
    body: dict[str, Any]
    size: int


class KeptAnswers:
    """The latest answers, the oldest dropped first: at most `count` of them and `size` characters of JSON."""

    def __init__(self, count: int = 1024, size: int = 64 << 20) -> None:
        self._count = count
        self._size = size
        self._held: OrderedDict[str, KeptAnswer] = OrderedDict()
        self._used = 0

    def put(self, name: str, user: str, messages: Sequence[dict[str, Any]], body: dict[str, Any]) -> None:
        """Keep one; of more than fits alone nothing is kept."""
        size = len(json.dumps([messages, body]))
        self.drop(name, user)
        if size > self._size or name in self._held:
            return
        self._held[name] = KeptAnswer(user, messages, body, size)
        self._used += size
        while len(self._held) > self._count or self._used > self._size:
            self._used -= self._held.popitem(last=False)[1].size

    def get(self, name: str, user: str) -> KeptAnswer | None:
        """None too when it is somebody else's."""
        found = self._held.get(name)
        return found if found is not None and found.user == user else None

    def drop(self, name: str, user: str) -> bool:
        """Whether there was one to drop."""
        if self.get(name, user) is None:
            return False
        self._used -= self._held.pop(name).size
        return True
