"""How a part of a process ends the whole."""

from __future__ import annotations

from typing import Protocol


class Life(Protocol):
    """The life of one member, which its parts may find to be over."""

    def end(self, why: str) -> None:
        """This process cannot go on as it is: another one has its key, or there is nothing left that it could serve."""
