"""The tree that proves in O(log n) against the one that recomputes, and both against what RFC 9162 defines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts.format.errors import ReceiptError
from receipts.format.merkle import (
    check_consistency,
    check_inclusion,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    tree_root,
)
from receipts.format.merkle_tree import Tree

LEAVES = [leaf_hash(b"%d" % number) for number in range(600)]


@given(size=st.integers(1, 600), data=st.data())
def test_roots_and_proofs_of_any_prefix_are_those_of_the_reference(size: int, data: st.DataObject) -> None:
    tree, index, old = Tree(LEAVES), data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    assert tree.root(size) == tree_root(LEAVES[:size])
    assert tree.inclusion(index, size) == inclusion_proof(LEAVES[:size], index)
    assert tree.consistency(old, size) == consistency_proof(LEAVES[:size], old)
    check_inclusion(LEAVES[index], index, size, tree.inclusion(index, size), tree.root(size))
    check_consistency(old, tree.root(old), size, tree.root(size), tree.consistency(old, size))


@pytest.mark.parametrize("size", range(1, 40))
def test_a_path_proves_a_leaf_for_one_size_of_the_tree_alone(size: int) -> None:
    """A path too short, or too long, for the size that was signed says nothing about it."""
    tree = Tree(LEAVES[:64])
    for index in range(size):
        path, root = tree.inclusion(index, size), tree.root(size)
        check_inclusion(LEAVES[index], index, size, path, root)
        for cut in (path[:-1], path[1:], [*path, LEAVES[0]]):
            if cut != path:
                with pytest.raises(ReceiptError):
                    check_inclusion(LEAVES[index], index, size, cut, root)


@pytest.mark.parametrize("size", range(3, 40))
def test_a_short_path_to_an_inner_node_proves_nothing(size: int) -> None:
    """The right hash at the wrong depth: without the size, a node within the tree would pass for a leaf."""
    tree = Tree(LEAVES[:size])
    for index in range(size):
        path = tree.inclusion(index)
        for depth in range(1, len(path) + 1):
            inner, low, high = _node(tree, index, size, depth)
            if high - low > 1:
                with pytest.raises(ReceiptError):
                    check_inclusion(inner, index, size, path[-depth:] if depth else [], tree.root())


@pytest.mark.parametrize("size", range(3, 40))
def test_a_prefix_of_a_part_is_no_prefix_of_a_tree_of_another_size(size: int) -> None:
    """Roots and path fit one another, but the path ends below where the root of that size lies, or above it."""
    tree = Tree(LEAVES[:64])
    for old in range(1, size):
        root, path = tree.root(size), tree.consistency(old, size)
        check_consistency(old, tree.root(old), size, root, path)
        for other in range(old + 1, 64):
            if len(tree.consistency(old, other)) != len(path):
                with pytest.raises(ReceiptError):
                    check_consistency(old, tree.root(old), other, root, path)


def _node(tree: Tree, index: int, size: int, depth: int) -> tuple[bytes, int, int]:
    """The node `depth` steps below the root on the way to a leaf."""
    low, high = 0, size
    for _ in range(depth):
        if high - low == 1:
            break
        middle = low + (1 << ((high - low - 1).bit_length() - 1))
        low, high = (low, middle) if index < middle else (middle, high)
    return tree_root(LEAVES[low:high]), low, high


@pytest.mark.parametrize("call", [lambda tree: tree.inclusion(5), lambda tree: tree.inclusion(-1)])
def test_what_is_not_in_the_tree_has_no_proof(call: object) -> None:
    with pytest.raises(ReceiptError):
        call(Tree(LEAVES[:5]))  # type: ignore[operator]
    for old in (0, 6):
        with pytest.raises(ReceiptError):
            Tree(LEAVES[:5]).consistency(old)
