"""A Merkle tree held in memory, for whoever proves: any proof in O(log n) hashes once its levels are built.

`receipts.format.merkle` recomputes subtrees for every proof, which costs O(n) each; a stranger may ask for 512 at once.
Trees and proofs are those of RFC 9162, section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from receipts.format.errors import ReceiptError, Refusal
from receipts.format.merkle import EMPTY_ROOT, node_hash


class Tree:
    """Levels of the complete subtrees over leaf hashes (32 bytes each); about 64 bytes and one hash per leaf."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels: list[list[bytes]] = [list(leaves)]
        while len(below := self._levels[-1]) > 1:
            pairs = range(0, len(below) - 1, 2)
            self._levels.append([node_hash(below[at], below[at + 1]) for at in pairs])

    @property
    def size(self) -> int:
        return len(self._levels[0])

    def root(self, size: int | None = None) -> bytes:
        """Root over the first `size` leaves, all of them by default."""
        size = self.size if size is None else size
        if not 0 <= size <= self.size:
            raise ReceiptError(Refusal.PROOF, f"the first {size} leaves of a tree of {self.size}")
        return self._over(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """Audit path of leaf `index` under the root over the first `size` leaves, leaf's sibling first."""
        size = self.size if size is None else size
        if not 0 <= index < size <= self.size:
            raise ReceiptError(Refusal.PROOF, f"leaf {index} of the first {size} of a tree of {self.size}")
        path: list[bytes] = []
        low, high = 0, size
        while high - low > 1:
            middle = low + split(high - low)
            if index < middle:
                path.append(self._over(middle, high))
                high = middle
            else:
                path.append(self._over(low, middle))
                low = middle
        return path[::-1]

    def consistency(self, old: int, size: int | None = None) -> list[bytes]:
        """Proof that the tree over the first `old` leaves is a prefix of that over the first `size`."""
        size = self.size if size is None else size
        if not 0 < old <= size <= self.size:
            raise ReceiptError(Refusal.PROOF, f"a prefix of {old} leaves in {size} of a tree of {self.size}")
        path: list[bytes] = []
        low, high, whole = 0, size, True
        while old < high:
            middle = low + split(high - low)
            if old <= middle:
                path.append(self._over(middle, high))
                high = middle
            else:
                path.append(self._over(low, middle))
                low, whole = middle, False
        if not whole:
            path.append(self._over(low, high))
        return path[::-1]

    def _over(self, low: int, high: int) -> bytes:
        """Root over leaves [low, high); `low` is a multiple of the largest power of two within the range."""
        size = high - low
        if size & (size - 1) == 0:
            return self._levels[size.bit_length() - 1][low // size]
        middle = low + split(size)
        return node_hash(self._over(low, middle), self._over(middle, high))


def split(size: int) -> int:
    """The largest power of two below `size` (size > 1)."""
    return 1 << ((size - 1).bit_length() - 1)
