"""How often tokens come in a text that grows: what penalties look at, kept from frame to frame instead of counted anew.

A frame of a tree has dozens of rows over one long text; penalties ask of each which tokens it sees, and how often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


def _none() -> Ids:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class TokenCounts:
    """Tokens that a text has, each once and rising, and how often. Nobody changes the arrays: many rows share them."""

    ids: Ids = field(default_factory=_none)
    counts: Ids = field(default_factory=_none)

    @classmethod
    def of(cls, tokens: Ids) -> TokenCounts:
        """Counted at once; ids below 0 are no tokens."""
        ids, counts = np.unique(tokens[tokens >= 0], return_counts=True)
        return cls(ids.astype(np.int64, copy=False), counts.astype(np.int64, copy=False))

    def plus(self, tokens: Ids) -> TokenCounts:
        """With these tokens behind the text."""
        more = TokenCounts.of(tokens)
        if not len(more.ids):
            return self
        place = np.searchsorted(self.ids, more.ids)
        known = np.zeros(len(more.ids), bool)
        inside = place < len(self.ids)
        known[inside] = self.ids[place[inside]] == more.ids[inside]
        counts = self.counts.copy()
        counts[place[known]] += more.counts[known]
        new = ~known
        if not new.any():
            return TokenCounts(self.ids, counts)
        ids = np.insert(self.ids, place[new], more.ids[new])
        return TokenCounts(ids, np.insert(counts, place[new], more.counts[new]))


Answered = Sequence[int] | TokenCounts
"""An answer so far: its tokens in order, or how often each comes."""
