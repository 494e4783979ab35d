"""Receipts that are older than their requester wants to keep."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

EVERY_S = 3600.0
_OURS = re.compile(r"[0-9a-f]{32}(\.secrets|\.trace)?\.json")


@dataclass
class Pruner:
    """Removes receipts of runs, and what lies beside them, `keep_s` seconds after they were written; None: never.

    Only files named by a run are looked at, so what was put elsewhere or renamed stays.
    """

    folder: Path
    keep_s: float | None = None
    _next: float = 0.0

    async def prune(self, now: float, wall_s: float) -> None:
        """At most once an hour, in a thread. `now`: monotonic seconds, `wall_s`: Unix time."""
        if self.keep_s is None or now < self._next:
            return
        self._next = now + EVERY_S
        await asyncio.to_thread(prune, self.folder, wall_s - self.keep_s)


def prune(folder: Path, before_s: float) -> int:
    """Remove what was written before this Unix time; returns how many files that were."""
    gone = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if _OURS.fullmatch(entry.name) and entry.stat().st_mtime < before_s:
                    os.unlink(entry.path)
                    gone += 1
    return gone
