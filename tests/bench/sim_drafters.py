"""Drafters for simulated time: one that is right with a given chance, one that replays recorded proposals."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from draft.base import ROOT, Child, DraftStep, Expansion


@dataclass(frozen=True)
class Draft:
    """A drafter: chance `alpha` that its first choice is right, `coverage` of its first eight, `ms` per step plus
    `leaf_ms` per further leaf. `honest`: its beliefs are true; else it is sure of everything. `spread`: how much its
    beliefs differ from token to token (a Beta distribution of that concentration; small is wide)."""

    alpha: float = 0.65
    coverage: float = 0.9
    ms: float = 6.0
    leaf_ms: float = 0.3
    honest: bool = True
    spread: float = 2.0


class SyntheticDrafter:
    """Proposals for a true sequence that is only numbers: position p holds token p, everything else is wrong."""

    name = "synthetic"

    def __init__(self, draft: Draft, seed: int) -> None:
        self.draft, self.seed = draft, seed
        self.paths: dict[int, tuple[int, bool]] = {}

    def begin(self, prompt: Sequence[int], sampling: object) -> None:
        self.paths = {ROOT: (len(prompt) - 1, True)}

    def step(self, step: DraftStep) -> list[Expansion]:
        for node in step.committed:
            self.paths[node.id] = (node.position, True)
        for node in step.nodes:
            _, right = self.paths[node.parent]
            self.paths[node.id] = (node.position, right and node.token == node.position)
        return [Expansion(id, self._levels(id, step)) for id in step.expand]

    def _levels(self, id: int, step: DraftStep) -> tuple[tuple[Child, ...], ...]:
        position, right = self.paths[id]
        rng = random.Random(hash((self.seed, position + 1, 0 if right else id)))
        return (self.proposals(position + 1, right, rng)[: step.width],)

    def proposals(self, position: int, right: bool, rng: random.Random) -> tuple[Child, ...]:
        draft = self.draft
        if draft.alpha <= 0.0:
            beliefs = [0.05] * 8
        else:
            first = rng.betavariate(draft.spread * draft.alpha, draft.spread * (1.0 - draft.alpha) + 1e-9)
            caught = (draft.coverage - draft.alpha) / (1.0 - draft.alpha)
            tail = [0.5**k for k in range(7)]
            beliefs = [first, *((1.0 - first) * caught * part / sum(tail) for part in tail)]
        truth, draw = -1, rng.random()
        if right and draft.alpha > 0.0:
            for rank, belief in enumerate(beliefs):
                draw -= belief
                if draw < 0.0:
                    truth = rank
                    break
        told = beliefs if draft.honest else [0.9, *[0.01] * 7]
        wrong = 1_000_000 + rng.randrange(1_000_000) * 8
        return tuple(Child(position if k == truth else wrong + k, c) for k, c in enumerate(told))


class TraceDrafter:
    """Replays recorded proposals on the true path; beside it, the beliefs of some other position with other tokens."""

    name = "trace"

    def __init__(self, tokens: Sequence[int], drafts: Sequence[Sequence[Sequence[float]]]) -> None:
        self.tokens, self.drafts = tokens, drafts

    def begin(self, prompt: Sequence[int], sampling: object) -> None:
        self.start = len(prompt)
        self.right = {ROOT: len(prompt) - 1}
        self.at: dict[int, int] = {}

    def step(self, step: DraftStep) -> list[Expansion]:
        for node in step.committed:
            self.right[node.id] = node.position
        for node in step.nodes:
            i = node.position - self.start
            if node.parent in self.right and i < len(self.tokens) and node.token == self.tokens[i]:
                self.right[node.id] = node.position
        return [Expansion(id, (self._children(id)[: step.width],)) for id in step.expand]

    def _children(self, id: int) -> tuple[Child, ...]:
        if id in self.right:
            i = self.right[id] + 1 - self.start
            return tuple(Child(int(t), float(c)) for t, c in self.drafts[i]) if i < len(self.drafts) else ()
        rng = random.Random(id)
        children = rng.choice(list(self.drafts))
        return tuple(Child(10_000_000 + rng.randrange(10**6), float(c)) for _, c in children)
