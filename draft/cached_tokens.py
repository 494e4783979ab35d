"""The tokens of a drafter that is a language model of its own: which it has computed, and in which slots of its
cache."""

from __future__ import annotations

import numpy as np

from draft.drafted import DraftedTokens, Token
from swarm.model.rows import Commits, Layout, Rows


class CachedTokens(DraftedTokens):
    """The tokens of one run over the scratch slots of `layout`, of which the top `reserved` are somebody else's.

    first    the position that lies at place 0 of the cache, if the text is read from its end on (`draft.window`)
    waiting  certain tokens, the last of them the root, whose rows were not computed yet
    """

    def __init__(self, layout: Layout, root: Token, reserved: int = 0) -> None:
        super().__init__(root, layout.scratch - reserved)
        self.layout = layout
        self.first = 0
        self.waiting: list[Token] = []
        self._copies: list[tuple[int, int]] = []

    def became(self, token: Token, slot: int) -> None:
        """See `DraftedTokens.became`."""
        if slot >= 0:
            self._copies.append((slot, self.place_of(token)))
        else:
            self.waiting.append(token)

    def place_of(self, token: Token) -> int:
        """Where a token lies among the certain ones of the cache, or will lie."""
        return token.position - self.first

    def move_to(self, first: int) -> None:
        """The cache is filled anew, with `first` at place 0: nothing is computed. What is known of children stays."""
        self.first, self.waiting, self._copies = first, [], []
        for token in self.root.walk():
            self.leave_slot(token)

    def missing(self, token: Token) -> list[Token]:
        """The token and those ancestors that have to be computed first, from the root's side."""
        path: list[Token] = []
        walk: Token | None = token
        while walk is not None and walk is not self.root and walk.slot < 0:
            path.append(walk)
            walk = walk.parent
        path.reverse()
        return path

    def take_commits(self) -> Commits:
        """Copies since the last call; they go with the next forward."""
        copies, self._copies = self._copies, []
        slots, positions = (np.array([c[i] for c in copies], np.uint32) for i in range(2))
        return Commits(slots, positions)

    def take_waiting(self) -> list[Token]:
        waiting, self.waiting = self.waiting, []
        return waiting

    def rows(self, waiting: list[Token], placed: list[Token]) -> Rows:
        """Rows of certain tokens (the last one answered) and of placed ones (all answered), in this order."""
        scratch, prefix = self.layout.scratch, self.place_of(self.root) + 1
        count = len(waiting) + len(placed)
        ancestors = np.zeros((count, scratch // 8), np.uint8)
        slots = [scratch + self.place_of(t) for t in waiting] + [t.slot for t in placed]
        seen = [self.place_of(t) + 1 for t in waiting] + [prefix] * len(placed)
        for row, token in enumerate(placed, len(waiting)):
            walk: Token | None = token
            while walk is not None and walk is not self.root:
                ancestors[row, walk.slot >> 3] |= 1 << (walk.slot & 7)
                walk = walk.parent
        want = np.ones(count, np.bool_)
        want[: max(0, len(waiting) - 1)] = False
        both = waiting + placed
        return Rows(
            slot=np.array(slots, np.uint32),
            position=np.array([self.place_of(t) for t in both], np.uint32),
            prefix=np.array(seen, np.uint32),
            ancestors=ancestors,
            token=np.array([t.token for t in both], np.int32),
            want=want,
        )
