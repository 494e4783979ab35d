"""What the last stage keeps: which tokens it drew, and which of them the run kept.

The tail knows nothing of drafts, yet it can tell: a row that wrote straight to a committed position was certain, and
a commit names the scratch slot that became a position. Everything else it drew belongs to branches that were dropped.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from receipts.format.canonical import MAX_INTEGER
from receipts.format.merkle import leaf_hash, tree_root
from receipts.format.salt import derive


def margin_ppm(margin: float) -> int:
    """Gap between the two best scores in parts per million, as an integer that JSON can carry (infinite: the most)."""
    return MAX_INTEGER if not margin < MAX_INTEGER / 1e6 else max(0, round(margin * 1e6))


@dataclass(frozen=True)
class Drawn:
    """Tokens at positions first, first + 1, ... with their margins."""

    first: int
    tokens: tuple[int, ...]
    margins_ppm: tuple[int, ...]

    def root(self, salt: bytes) -> str:
        """Hex Merkle root over (position, token, margin); each leaf under a salt of its own."""
        return tree_root(self.leaves(salt)).hex()

    def leaves(self, salt: bytes) -> list[bytes]:
        return [
            token_leaf(salt, self.first + index, token, margin)
            for index, (token, margin) in enumerate(zip(self.tokens, self.margins_ppm, strict=True))
        ]

    def between(self, first: int, last: int) -> Drawn:
        """The part at positions [first, last)."""
        low, high = max(first - self.first, 0), max(last - self.first, 0)
        return Drawn(max(first, self.first), self.tokens[low:high], self.margins_ppm[low:high])

    def as_json(self) -> dict[str, int | list[int]]:
        return {"first": self.first, "tokens": list(self.tokens), "margins_ppm": list(self.margins_ppm)}


def token_leaf(salt: bytes, position: int, token: int, margin: int) -> bytes:
    """Leaf hash of one token: data is its own salt (32 bytes), position, token (4 each), margin (8), all big-endian.

    The salt of a leaf is derived one-way from the run's token salt, so one leaf can be opened alone.
    """
    return leaf_hash(derive(salt, "token", position), struct.pack(">IIQ", position, token, margin))


class TailLog:
    """Call `committed` for the commits of a frame before `answered` for its rows, as the frame itself says."""

    def __init__(self) -> None:
        self.answers = 0
        self._scratch: dict[int, tuple[int, int, int]] = {}
        self._kept: dict[int, tuple[int, int]] = {}
        self._first_us: int | None = None
        self._last_us = 0

    def answered(self, position: int, token: int, margin: float, slot: int | None, now_us: int) -> None:
        """A row was answered: `token` at `position` (of the token drawn), from scratch slot `slot`.

        `slot` is None for a row that wrote straight to its committed position. `now_us` is a monotonic clock.
        """
        self.answers += 1
        if self._first_us is None:
            self._first_us = now_us
        self._last_us = now_us
        if slot is None:
            self._kept[position] = (token, margin_ppm(margin))
        else:
            self._scratch[slot] = (position, token, margin_ppm(margin))

    def unanswered(self, slot: int) -> None:
        """A row was written to a scratch slot without an answer being wanted: forget the slot's earlier row."""
        self._scratch.pop(slot, None)

    def committed(self, slot: int, position: int) -> None:
        """A commit: the row in `slot` became the committed row at `position`, so its answer is the next token."""
        entry = self._scratch.pop(slot, None)
        if entry is not None and entry[0] == position + 1:
            self._kept[entry[0]] = entry[1:]

    @property
    def span_us(self) -> int:
        return 0 if self._first_us is None else max(0, self._last_us - self._first_us)

    def drawn(self, first: int, until: int) -> Drawn:
        """What was kept at positions [first, until), up to the first position that this tail did not draw."""
        kept: list[tuple[int, int]] = []
        for position in range(first, until):
            if position not in self._kept:
                break
            kept.append(self._kept[position])
        return Drawn(first, tuple(token for token, _ in kept), tuple(margin for _, margin in kept))
