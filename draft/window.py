"""How much of a text a model drafter reads: of a long one its beginning and its end.

Exactness is the tail's, so a drafter is free to know less. What it reads costs it time before the first draft, and time
at every step.
"""

from __future__ import annotations

from dataclasses import dataclass

AHEAD = 32
"""Places that are kept free for drafted tokens before the window moves on."""

SIZE, HEAD = 512, 64
"""Measured behind 5,500 tokens (docs/performance.md, "Behind a long text")."""


@dataclass(frozen=True)
class TextWindow:
    """Reading `size` tokens of a longer text: its first `head`, which models lean on, and its last `size` - head.

    The cache holds `context` positions: the window moves on when the text's end has grown to them.
    """

    size: int
    head: int
    context: int

    def __post_init__(self) -> None:
        if not 0 <= self.head < self.size <= self.context - AHEAD:
            raise ValueError(f"expected 0 <= head < size <= context - {AHEAD}, found {self}")

    def read(self, length: int) -> tuple[int, int]:
        """Of a text of `length` tokens those before the first number and from the second on are read."""
        if length <= self.size:
            return length, length
        return self.head, length - (self.size - self.head)

    def full(self, held: int) -> bool:
        """Whether a cache of `held` certain tokens has to be filled anew, before it has no room for drafted ones."""
        return held + AHEAD > self.context


def reading(context: int) -> TextWindow:
    """What a drafter whose cache may hold `context` positions reads: SIZE tokens, and it moves on after as many
    more."""
    context = min(context, 2 * SIZE)
    size = min(SIZE, max(1, context // 2))
    return TextWindow(size, min(HEAD, size // 4), max(context, size + AHEAD))
