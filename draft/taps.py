"""Hidden rows of the target as a drafter reads them: by the node or the position that they are of.

The run's event loop puts rows in as stages send them; the draft thread takes them out. A row that was asked for and
has not come is `awaited` until whoever asks gives it up.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch

MOST_ROWS = 4096
"""Rows held at once; the oldest go. Of five layers of 4096 values in bfloat16 that is 160 MiB."""


def at_position(position: int) -> int:
    """The name of a certain row; a drafted one has its node's id."""
    return -1 - position


class TapStore:
    """Rows [taps x hidden_size] by name."""

    def __init__(self) -> None:
        self._rows: dict[int, torch.Tensor] = {}
        self._awaited: set[int] = set()
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Forget everything: another run begins."""
        with self._lock:
            self._rows.clear()
            self._awaited.clear()

    def expect(self, names: Iterable[int]) -> None:
        """These were asked for."""
        with self._lock:
            self._awaited.update(names)

    def give_up(self, names: Iterable[int]) -> None:
        """These will not come."""
        with self._lock:
            self._awaited.difference_update(names)

    def put(self, name: int, row: torch.Tensor) -> None:
        """A row came."""
        with self._lock:
            self._awaited.discard(name)
            self._rows.pop(name, None)
            self._rows[name] = row
            while len(self._rows) > MOST_ROWS:
                del self._rows[next(iter(self._rows))]

    def take(self, *names: int) -> torch.Tensor | None:
        """The row of the first of these names that is here; it is gone from here then."""
        with self._lock:
            found = None
            for name in names:
                found = self._rows.pop(name, None) if found is None else found
            return found

    def look(self, name: int) -> torch.Tensor | None:
        """The row of that name, which stays."""
        with self._lock:
            return self._rows.get(name)

    def awaits(self, *names: int) -> bool:
        """Whether one of these may still come."""
        with self._lock:
            return not self._awaited.isdisjoint(names)


@runtime_checkable
class ReadsTaps(Protocol):
    """A drafter that reads hidden rows of the target: of which layers (`swarm.ring.taps`), of how many positions at a
    prompt's end, and where it finds them."""

    @property
    def layers(self) -> tuple[int, ...]: ...

    @property
    def reach(self) -> int: ...

    @property
    def store(self) -> TapStore: ...
