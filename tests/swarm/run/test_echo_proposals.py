"""Echoes are weighed again only where something changed, and that changes nothing."""

from __future__ import annotations

import random

import pytest

from draft.base import Child
from draft.calibrate import Calibration
from draft.tree import TokenTree
from swarm.planner.costs import Costs
from swarm.run.controller import Controller, Setting
from swarm.run.echo_proposals import Echoing
from swarm.run.proposals import DEFERRED, ECHO, INLINE

VOCAB = 40


def grown(seed: int, forgetful: bool, turns: int = 60) -> list[list[tuple[int, int, float]]]:
    """The trees of a run with many equal tokens; forgetful: everything is weighed anew each time."""
    rng, log = random.Random(seed), []
    tree = TokenTree(1, 9, 96, drafters=(INLINE, DEFERRED), horizon=10**6, ends=frozenset(), narrow=False, refiner=ECHO)
    tokens = [*(rng.randrange(VOCAB) for _ in range(9)), 1]
    echoing = Echoing(tree, tokens, Controller(Costs(), Setting()), Calibration(trust=1.0), True)
    trust = Calibration()

    def propose() -> None:
        if forgetful:
            echoing._weighed.clear()
        echoing.propose()

    for turn in range(turns):
        for node, _ in tree.leaves(DEFERRED, 5, 1e-4):
            drawn = zip(rng.sample(range(VOCAB), 3), (0.6, 0.2, 0.1), strict=True)
            children = tuple(Child(token, share) for token, share in drawn)
            tree.ask(node, DEFERRED)
            tree.propose(node, DEFERRED, children, trust.shares(children), 1e-3)
            propose()
        live = list(tree.live.values())
        for node in rng.sample(live, min(10, len(live))):
            echoing.heard(node, rng.choice([*node.children] or [rng.randrange(VOCAB)]))
        propose()
        log.append(sorted((node.id, node.token, node.score) for node in tree.live.values()))
        if turn % 2:
            tree.root.answer = next(iter(tree.root.children), rng.randrange(VOCAB))
            tokens += [new.token for _, new in tree.advance()]
            tree.dropped.clear()
    return log


@pytest.mark.parametrize("seed", range(4))
def test_what_is_remembered_of_echoes_changes_no_tree(seed: int) -> None:
    log = grown(seed, forgetful=False)
    assert log == grown(seed, forgetful=True)
    assert max(map(len, log)) > 40


def test_what_is_remembered_is_bounded() -> None:
    tree = TokenTree(1, 0, 96, drafters=(INLINE, DEFERRED), horizon=10**6, ends=frozenset(), narrow=False, refiner=ECHO)
    tokens = [1]
    echoing = Echoing(tree, tokens, Controller(Costs(), Setting()), Calibration(trust=1.0), True)
    for turn in range(700):
        echoing.heard(tree.root, turn % 3)
        echoing.propose()
        tree.root.answer = turn % 3
        tokens += [new.token for _, new in tree.advance()]
        tree.dropped.clear()
    assert len(echoing._weighed) < 400
