from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from draft.base import Child
from draft.tree import Node, TokenTree


def children(*pairs: tuple[int, float]) -> list[Child]:
    return [Child(token, share) for token, share in pairs]


def grow(tree: TokenTree, node: Node, *pairs: tuple[int, float], drafter: int = 0) -> list[Node]:
    tree.ask(node, drafter)
    tree.propose(node, drafter, children(*pairs), [share for _, share in pairs])
    return [node.children[token] for token, _ in pairs if token in node.children]


def check(tree: TokenTree, scratch: int, held: int) -> None:
    """What must hold after every change: `held` slots belong to commits that are on their way."""
    slots = [node.slot for node in tree.live.values() if node.slot >= 0]
    assert len(set(slots)) == len(slots), "two live nodes share a slot"
    assert len(slots) + tree.free_slots + held == scratch, "a slot was lost or made"
    for node in tree.live.values():
        assert node.live
        if node is tree.root:
            continue
        assert node.parent is not None and node.parent.children[node.token] is node and node.parent.live
        assert node.position == node.parent.position + 1
        assert not node.sent or node.parent is tree.root or node.parent.sent, "sent before its parent"
        shares = [child.share for child in node.parent.children.values()]
        assert sum(shares) <= 1.0 + 1e-9
        expected = math.prod(step.share for step in tree.path(node))
        assert math.isclose(tree.chance(node), expected, rel_tol=1e-6, abs_tol=1e-12)


@given(st.integers(0, 2**32), st.sampled_from([8, 16, 64]), st.booleans())
def test_slots_parents_and_chances_hold_through_any_life(seed: int, scratch: int, narrow: bool) -> None:
    rng = random.Random(seed)
    tree = TokenTree(1, 0, scratch, drafters=(0, 1), horizon=30, narrow=narrow, ends=frozenset({4}), refiner=2)
    held: list[int] = []
    ever: set[int] = set()
    for _ in range(60):
        match rng.randrange(5):
            case 4:
                node = rng.choice(list(tree.live.values()))
                tokens = rng.sample(range(6), rng.randint(1, 3))
                share = rng.random() / len(tokens)
                tree.propose(node, 2, children(*((token, share) for token in tokens)), [share] * len(tokens))
            case 0:
                drafter = rng.randrange(2)
                for node, _ in tree.leaves(drafter, rng.randint(1, 4), 0.0):
                    tokens = rng.sample(range(6), rng.randint(1, 4))
                    grow(tree, node, *((token, rng.random()) for token in tokens), drafter=drafter)
            case 1:
                before = {node.id for node in tree.live.values() if node.sent}
                taken = tree.take(rng.randint(1, 8), rng.choice((0.0, 0.1)))
                assert not before & {node.id for node in taken}
            case 2:
                token = rng.choice([*tree.root.children, rng.randrange(6)])
                tree.root.answer = token
                for old, new in tree.advance():
                    assert new.token == token and new.position == old.position + 1 and not old.live
                    assert new.id not in ever, "an id is used once"
                    ever.add(new.id)
                    if new.slot >= 0:
                        held.append(new.slot)
                        new.slot = -1
            case _ if held:
                tree.release(held.pop())
        check(tree, scratch, len(held))
        assert not set(tree.dropped) & set(tree.live), "dropped and alive"
    tree.forget_sent()
    check(tree, scratch, 0)
    assert not any(node.sent for node in tree.live.values())


@given(st.integers(0, 2**32))
def test_rows_go_and_leaves_grow_by_chance_parents_first(seed: int) -> None:
    rng = random.Random(seed)
    tree = TokenTree(0, 0, 512, drafters=(0,))
    for _ in range(12):
        worths = []
        for node, worth in tree.leaves(0, 3, 0.0):
            worths.append(worth)
            assert math.isclose(worth, tree.chance(node) * max(1e-6, 1.0 - node.covered), rel_tol=1e-9)
            grow(tree, node, *((token, rng.choice((0.1, 0.5, 1.0))) for token in range(rng.randint(1, 3))))
        assert worths == sorted(worths, reverse=True)
    chances = tree.unsent(500, 0.0)
    taken = tree.take(500, 0.0)
    assert len(taken) == len(tree.live) - 1 == len(chances)
    assert [tree.chance(node) for node in taken] == chances == sorted(chances, reverse=True)
    seen = {tree.root.id}
    for node in taken:
        assert node.parent is not None and node.parent.id in seen
        seen.add(node.id)


def test_several_roots_advance_when_their_answers_are_known() -> None:
    tree = TokenTree(0, 0, 8)
    a, _ = grow(tree, tree.root, (1, 0.6), (2, 0.3))
    (b,) = grow(tree, a, (3, 0.5))
    grow(tree, b, (5, 0.5))
    tree.take(8, 0.0)
    tree.root.answer, a.answer, b.answer = 1, 3, 9
    steps = [(old.token, new.token, new.sent) for old, new in tree.advance()]
    assert steps == [(0, 1, True), (1, 3, True), (3, 9, False)]
    assert len(tree.live) == 1 and tree.chance(tree.root) == 1.0
    assert tree.free_slots == 6, "the two that were right keep their slots until they are committed"


def test_the_larger_share_holds_and_shares_never_exceed_one() -> None:
    tree = TokenTree(0, 0, 8, drafters=(0, 1))
    (a,) = grow(tree, tree.root, (1, 0.9), drafter=0)
    (below,) = grow(tree, a, (7, 0.5), drafter=0)
    grow(tree, tree.root, (1, 0.2), (2, 0.6), drafter=1)
    assert math.isclose(a.share, 0.6) and math.isclose(tree.root.children[2].share, 0.4)
    assert math.isclose(tree.chance(below), 0.3), "what hangs below follows"
    assert [node.token for node in tree.take(3, 0.0)] == [1, 2, 7]


def test_a_sure_answer_leaves_nothing_for_another_drafter_to_add() -> None:
    tree = TokenTree(0, 0, 8, drafters=(0, 1))
    (sure,) = grow(tree, tree.root, (1, 1.0), drafter=0)
    assert [node.id for node, _ in tree.leaves(1, 8, 0.01)] == [sure.id]
    assert [node.id for node, _ in tree.leaves(1, 8, 0.0)] == [sure.id, tree.root.id]


def test_a_narrow_tree_is_a_chain() -> None:
    tree = TokenTree(0, 0, 8, drafters=(0, 1), narrow=True)
    (a,) = grow(tree, tree.root, (1, 0.5), (2, 0.4), drafter=0)
    assert grow(tree, tree.root, (3, 0.9), drafter=1) == []
    assert [node.id for node, _ in tree.leaves(1, 8, 0.0)] == [a.id]


def test_nothing_grows_past_the_horizon_or_below_an_end() -> None:
    tree = TokenTree(4, 0, 8, horizon=2, ends=frozenset({4}))
    a, end = grow(tree, tree.root, (1, 0.5), (4, 0.4))
    assert grow(tree, end, (2, 0.9)) == []
    (b,) = grow(tree, a, (1, 0.9))
    assert grow(tree, b, (1, 0.9)) == []
    assert tree.leaves(0, 8, 0.0) == []
    assert [node.id for node in tree.take(8, 0.0)] == [a.id, b.id]


def test_a_node_that_was_not_served_is_offered_again() -> None:
    tree = TokenTree(0, 0, 8)
    tree.ask(tree.root, 0)
    assert tree.leaves(0, 8, 0.0) == []
    tree.unask(tree.root, 0)
    assert [node for node, _ in tree.leaves(0, 8, 0.0)] == [tree.root]


def test_the_refiner_has_the_last_word_and_others_share_the_rest() -> None:
    tree = TokenTree(0, 0, 8, drafters=(0, 1), refiner=2)
    grow(tree, tree.root, (1, 0.6), (2, 0.2), drafter=0)
    grow(tree, tree.root, (2, 0.3), drafter=1)
    assert tree.claimed(tree.root) == {1: 0.6, 2: 0.3}
    grow(tree, tree.root, (2, 0.65), (3, 0.0), drafter=2)
    shares = {token: node.share for token, node in tree.root.children.items()}
    assert math.isclose(shares[2], 0.65)
    assert math.isclose(shares[1], 0.6 * 0.35 / 0.7), "what is left, in the old proportion"
    assert tree.claimed(tree.root) == {1: 0.6, 2: 0.3}
    grow(tree, tree.root, (3, 0.5), drafter=2)
    shares = {token: node.share for token, node in tree.root.children.items()}
    assert math.isclose(shares[3], 0.5) and math.isclose(shares[1], 0.3) and math.isclose(shares[2], 0.15)


def test_a_drafter_that_takes_back_a_token_leaves_it_without_a_chance() -> None:
    tree = TokenTree(0, 0, 8)
    one, two = grow(tree, tree.root, (1, 0.5), (2, 0.4))
    (below,) = grow(tree, one, (3, 0.5))
    tree.propose(tree.root, 0, children((2, 0.9)), [0.9])
    assert tree.chance(below) < 1e-5 and math.isclose(tree.chance(two), 0.9)
    assert tree.take(8, 0.1) == [two]
