"""Merkle trees against the published vectors of Certificate Transparency and against their definition."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receipts.format.errors import ReceiptError, Refusal
from receipts.format.merkle import (
    EMPTY_ROOT,
    Accumulator,
    check_consistency,
    check_inclusion,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    tree_root,
)

# The reference tree of the Certificate Transparency implementations (leaf inputs and roots of sizes 1 to 8).
INPUTS = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [leaf_hash(data) for data in INPUTS]
TREES = st.lists(st.binary(max_size=8).map(leaf_hash), min_size=1, max_size=70)


def hexes(path: list[bytes]) -> list[str]:
    return [step.hex() for step in path]


def test_roots_of_the_reference_tree() -> None:
    assert tree_root([]) == EMPTY_ROOT == hashlib.sha256(b"").digest()
    assert [tree_root(LEAVES[:size]).hex() for size in range(1, 9)] == ROOTS


def test_proofs_of_the_reference_tree() -> None:
    assert hexes(inclusion_proof(LEAVES, 0)) == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]
    assert hexes(inclusion_proof(LEAVES, 5)) == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert hexes(consistency_proof(LEAVES, 6)) == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert hexes(consistency_proof(LEAVES[:5], 2)) == [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ]


@given(TREES, st.data())
def test_every_leaf_is_included_and_nothing_else(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    root, path = tree_root(leaves), inclusion_proof(leaves, index)
    check_inclusion(leaves[index], index, len(leaves), path, root)
    for wrong in (
        (leaf_hash(b"another leaf"), index, path),
        (leaves[index], index, [*path, root]),
        (leaves[index], index, path[:-1] if path else [root]),
        (leaves[index], index, [step[::-1] for step in path] or [root]),
    ):
        with pytest.raises(ReceiptError) as caught:
            check_inclusion(wrong[0], wrong[1], len(leaves), wrong[2], root)
        assert caught.value.refusal is Refusal.PROOF


@given(TREES, st.data())
def test_every_prefix_is_consistent_and_nothing_else(leaves: list[bytes], data: st.DataObject) -> None:
    old = data.draw(st.integers(1, len(leaves)))
    old_root, root, path = tree_root(leaves[:old]), tree_root(leaves), consistency_proof(leaves, old)
    check_consistency(old, old_root, len(leaves), root, path)
    wrong_old = leaf_hash(old_root)
    for wrong in ((wrong_old, root, path), (old_root, leaf_hash(root), path), (old_root, root, [*path, root])):
        with pytest.raises(ReceiptError):
            check_consistency(old, wrong[0], len(leaves), wrong[1], wrong[2])


def test_positions_outside_the_tree() -> None:
    root = tree_root(LEAVES)
    for index in (-1, 8, 2**70):
        with pytest.raises(ReceiptError):
            check_inclusion(LEAVES[0], index, 8, [], root)
    with pytest.raises(ReceiptError):
        inclusion_proof(LEAVES, 8)
    with pytest.raises(ReceiptError):
        check_consistency(0, EMPTY_ROOT, 8, root, [])
    with pytest.raises(ReceiptError):
        check_inclusion(LEAVES[0], 0, 2**60, [root] * 65, root)


@given(TREES)
def test_the_accumulator_needs_no_more_than_the_logarithm(leaves: list[bytes]) -> None:
    tree = Accumulator()
    for leaf in leaves:
        tree.add(leaf)
    assert tree.root() == tree_root(leaves)
    assert len(tree._peaks) == bin(len(leaves)).count("1")
