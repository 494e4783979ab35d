"""What a stage has computed of one run and not yet sent."""

from __future__ import annotations

import asyncio
from collections import deque

from swarm.ring.frame import Answer, Frame


class Unsent(asyncio.Queue[Frame | Answer]):
    """In the order in which it was computed. `rows`: that wait in it, for whoever bounds them."""

    def _init(self, maxsize: int) -> None:
        self._waiting: deque[Frame | Answer] = deque()
        self.rows = 0

    def qsize(self) -> int:
        """How many frames or answers wait."""
        return len(self._waiting)

    def _get(self) -> Frame | Answer:
        out = self._waiting.popleft()
        self.rows -= _rows(out)
        return out

    def _put(self, item: Frame | Answer) -> None:
        self._waiting.append(item)
        self.rows += _rows(item)

    def empty(self) -> bool:
        """Whether none waits."""
        return not self._waiting


def _rows(out: Frame | Answer) -> int:
    return len(out.rows) if isinstance(out, Frame) else len(out.row)
