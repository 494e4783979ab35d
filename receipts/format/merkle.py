"""Merkle trees as in RFC 9162 (Certificate Transparency 2.0), section 2.1: SHA-256, leaf prefix 0, node prefix 1."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from receipts.format.errors import ReceiptError, Refusal

EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(*parts: bytes | bytearray | memoryview) -> bytes:
    """Hash of one leaf whose data is the given parts joined; the parts are not copied."""
    state = hashlib.sha256(b"\x00")
    for part in parts:
        state.update(part)
    return state.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Accumulator:
    """The root of a growing tree in O(log n) memory: the roots of its complete subtrees, largest first."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        """Append one leaf hash (32 bytes)."""
        self._peaks.append(leaf)
        size = self.size
        while size & 1:
            right = self._peaks.pop()
            self._peaks[-1] = node_hash(self._peaks[-1], right)
            size >>= 1
        self.size += 1

    def root(self) -> bytes:
        if not self._peaks:
            return EMPTY_ROOT
        result = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            result = node_hash(peak, result)
        return result


def tree_root(leaves: Iterable[bytes]) -> bytes:
    """Root over leaf hashes."""
    tree = Accumulator()
    for leaf in leaves:
        tree.add(leaf)
    return tree.root()


def _split(size: int) -> int:
    """The largest power of two below `size` (size > 1)."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Audit path of leaf `index` (RFC 9162, 2.1.3.1), from the leaf's sibling up to the root's child."""
    if not 0 <= index < len(leaves):
        raise ReceiptError(Refusal.PROOF, f"leaf {index} of a tree of {len(leaves)}")
    path: list[bytes] = []
    low, high = 0, len(leaves)
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append(tree_root(leaves[middle:high]))
            high = middle
        else:
            path.append(tree_root(leaves[low:middle]))
            low = middle
    path.reverse()
    return path


def check_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """RFC 9162, 2.1.3.2. Raises ReceiptError(PROOF) unless `leaf` is leaf `index` of the tree of `size` with `root`."""
    if not 0 <= index < size or len(path) > 64:
        raise ReceiptError(Refusal.PROOF, f"leaf {index} of a tree of {size}, path of {len(path)}")
    node, last, result = index, size - 1, leaf
    for step in path:
        if last == 0:
            raise ReceiptError(Refusal.PROOF, "inclusion path is too long")
        if node & 1 or node == last:
            result = node_hash(step, result)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            result = node_hash(result, step)
        node >>= 1
        last >>= 1
    if last != 0 or result != root:
        raise ReceiptError(Refusal.PROOF, f"leaf {index} is not under root {root.hex()[:16]}")


def consistency_proof(leaves: Sequence[bytes], old: int) -> list[bytes]:
    """Proof that the tree over the first `old` leaves is a prefix of the tree over all (RFC 9162, 2.1.4.1)."""
    if not 0 < old <= len(leaves):
        raise ReceiptError(Refusal.PROOF, f"a prefix of {old} leaves of a tree of {len(leaves)}")

    def subproof(low: int, high: int, count: int, whole: bool) -> list[bytes]:
        if count == high - low:
            return [] if whole else [tree_root(leaves[low:high])]
        middle = low + _split(high - low)
        if count <= middle - low:
            return [*subproof(low, middle, count, whole), tree_root(leaves[middle:high])]
        return [*subproof(middle, high, count - (middle - low), False), tree_root(leaves[low:middle])]

    return subproof(0, len(leaves), old, True)


def check_consistency(old: int, old_root: bytes, size: int, root: bytes, path: Sequence[bytes]) -> None:
    """RFC 9162, 2.1.4.2. Raises ReceiptError(PROOF) unless the old tree is a prefix of the new one."""
    if not 0 < old <= size or len(path) > 64:
        raise ReceiptError(Refusal.PROOF, f"a prefix of {old} leaves of a tree of {size}")
    if old == size:
        if path or old_root != root:
            raise ReceiptError(Refusal.PROOF, "equal trees with different roots")
        return
    steps = list(path)
    if old & (old - 1) == 0:
        steps.insert(0, old_root)
    if not steps:
        raise ReceiptError(Refusal.PROOF, "consistency path is empty")
    node, last = old - 1, size - 1
    while node & 1:
        node >>= 1
        last >>= 1
    first = second = steps[0]
    for step in steps[1:]:
        if last == 0:
            raise ReceiptError(Refusal.PROOF, "consistency path is too long")
        if node & 1 or node == last:
            first, second = node_hash(step, first), node_hash(step, second)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            second = node_hash(second, step)
        node >>= 1
        last >>= 1
    if first != old_root or second != root or last != 0:
        raise ReceiptError(Refusal.PROOF, f"the tree of {old} is not a prefix of the tree of {size}")
