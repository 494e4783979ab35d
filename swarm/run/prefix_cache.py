"""Which closed run a new one may begin from: the prefix cache of a requester."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

LEAST_SHARED = 32
"""Tokens in common under which taking over costs more than computing them again."""
MOST_KEPT = 16


@dataclass(frozen=True)
class KeptRun:
    """A run whose stages still hold the keys and values of `tokens`, until `until` (seconds, monotonic).

    `route`: (node, first, last) of its stages; only the same route can take it over. `name`: as the run's request
    has it; only requests of the same name may. Of its first `public` tokens, nobody's own, all others may too.
    """

    run: bytes
    route: tuple[tuple[bytes, int, int], ...]
    tokens: tuple[int, ...]
    until: float
    name: str = ""
    public: int = 0


@dataclass
class PrefixCache:
    """The runs kept, newest last. Nothing here talks to stages; a run that they dropped is simply computed again."""

    kept: list[KeptRun] = field(default_factory=list)

    def best(
        self,
        prompt: Sequence[int],
        route: tuple[tuple[bytes, int, int], ...],
        now: float,
        name: str = "",
        public: int = 0,
    ) -> tuple[bytes, int]:
        """The run that shares most with `prompt`, and how many tokens may be taken over; (b"", 0): none. A run of
        another name shares what is `public` of both.

        The last prompt token is always computed, since its answer begins the run.
        """
        self.kept = [run for run in self.kept if run.until > now]
        found, most = b"", LEAST_SHARED - 1
        for run in self.kept:
            may = len(prompt) if run.name == name else min(run.public, public)
            if run.route == route and (shared := min(may, common(run.tokens, prompt))) > most:
                found, most = run.run, shared
        return (found, min(most, len(prompt) - 1)) if found else (b"", 0)

    def add(self, run: KeptRun) -> None:
        """Remember a closed run; the oldest goes when there are too many."""
        self.kept = [*self.kept, run][-MOST_KEPT:]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
