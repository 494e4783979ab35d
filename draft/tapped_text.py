"""What drafters that read hidden rows of the target share: the certain text, the drafted tokens behind it, and which of
the text's hidden rows came.

A certain row is asked for by its position, a drafted one by its node, which it keeps when it becomes certain. What
never comes leaves a gap that nobody sees: such a drafter knows a little less then.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from draft.base import ROOT, DraftStep
from draft.drafted import DraftedTokens, Token
from draft.taps import TapStore, at_position

WINDOW = 640
"""Positions back from the last token whose rows are still waited for. What a drafter of one layer makes of text farther
back changes little, and the rows of a long prompt would be megabytes."""


class TappedText(DraftedTokens):
    """The text of one run and its tree, over `slots` slots for drafted tokens.

    tokens   certain ones by position; root: the last of them
    pending  positions whose hidden rows have not been used yet, ascending
    moved    (slot, position) of drafted tokens that became certain since it was emptied
    """

    def __init__(self, slots: int, store: TapStore) -> None:
        self._store, self._slots = store, slots
        self.tokens: list[int] = []
        self.begin((0,))

    def begin(self, prompt: Sequence[int]) -> int:
        """Start after `prompt`; how many leading tokens are those of the text before."""
        pairs = zip(self.tokens, prompt, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(prompt)))
        self.tokens = list(prompt)
        self._ids = [-1] * (len(prompt) - 1) + [ROOT]
        self.plant(Token(None, prompt[-1], len(prompt) - 1), self._slots)
        self.pending = list(range(max(0, len(prompt) - WINDOW), len(prompt)))
        self.moved: list[tuple[int, int]] = []
        return shared

    def names(self, position: int) -> tuple[int, ...]:
        """The names of a certain token's hidden row."""
        id = self._ids[position]
        return (at_position(position),) if id < 0 else (id, at_position(position))

    def apply(self, step: DraftStep) -> None:
        """See `DraftedTokens.apply`."""
        super().apply(step)
        oldest = self.root.position - WINDOW
        self.pending = [position for position in self.pending if position > oldest]

    def became(self, token: Token, slot: int) -> None:
        """See `DraftedTokens.became`."""
        if slot >= 0:
            self.moved.append((slot, token.position))
        self.tokens.append(token.token)
        self._ids.append(token.id)
        self.pending.append(token.position)

    def came(self, first: int, last: int) -> list[tuple[int, torch.Tensor]]:
        """Of the pending positions in [first, last), those whose hidden rows came, with them; they pend no more."""
        found, still = [], []
        for position in self.pending:
            row = self._store.take(*self.names(position)) if first <= position < last else None
            if row is None:
                still.append(position)
            else:
                found.append((position, row))
        self.pending = still
        return found

    def awaits(self, position: int) -> bool:
        """Whether the hidden row of a certain token was asked for and may still come."""
        return self._store.awaits(*self.names(position))
