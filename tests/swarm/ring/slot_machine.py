"""A stage without a model: slots hold the token path that their key and value were computed from.

A transformer's row is a function of the rows it sees, so a stage that keeps, for every slot, the whole path behind it
shows exactly what a real stage would compute, and any wrong slot, mask, order or reuse shows up as a broken path.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from draft.base import ROOT, Child, DraftStep, Expansion
from swarm.model.rows import Layout, check_untrusted
from swarm.run.speculation import PlannedFrame

VOCAB = 11
Path = tuple[int, ...]


def next_token(path: Path) -> int:
    """The 'model': the true next token is any fixed function of the whole path."""
    return random.Random(hash(path)).randrange(VOCAB)


def true_run(prompt: Sequence[int], count: int) -> list[int]:
    """What plain decoding gives: `count` tokens after `prompt`."""
    path = tuple(prompt)
    for _ in range(count):
        path += (next_token(path),)
    return list(path[len(prompt) :])


class SlotMachine:
    """One stage: applies a frame's commits, writes its rows, checks what each row sees, answers what is wanted."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.slots: dict[int, Path] = {}

    def frame(self, frame: PlannedFrame) -> tuple[list[Path], list[int]]:
        """Paths of all rows, and answers of the wanted ones."""
        scratch, rows = self.layout.scratch, frame.rows
        check_untrusted(rows, frame.commits, self.layout)
        copied = [self.slots[int(slot)] for slot in frame.commits.slot]
        for path, position in zip(copied, frame.commits.position, strict=True):
            assert len(path) == position + 1
            self.slots[scratch + int(position)] = path
        paths: list[Path] = [()] * len(rows)
        for i in sorted(range(len(rows)), key=lambda i: int(rows.position[i])):
            own, position = int(rows.slot[i]), int(rows.position[i])
            bits = int.from_bytes(rows.ancestors[i].tobytes(), "little")
            seen = [scratch + p for p in range(int(rows.prefix[i]))] + [s for s in range(scratch) if bits >> s & 1]
            seen.remove(own)
            before = sorted((self.slots[slot] for slot in seen), key=len)
            assert [len(path) for path in before] == list(range(1, position + 1)), "sees each position once"
            parent = before[-1] if before else ()
            assert all(parent[: len(path)] == path for path in before), "sees one path"
            paths[i] = (*parent, int(rows.token[i]))
            self.slots[own] = paths[i]
        return paths, [next_token(path) for path, want in zip(paths, rows.want, strict=True) if want]


class TellTale:
    """A drafter that checks what it is told, and proposes the true token with a given chance at some rank."""

    name = "telltale"

    def __init__(self, prompt: Sequence[int], luck: float, rng: random.Random, refuse: float = 0.0) -> None:
        self.committed: Path = tuple(prompt)
        self.last = ROOT
        self.told: dict[int, Path] = {}
        self.ids: set[int] = {ROOT}
        self.luck, self.rng, self.refuse = luck, rng, refuse

    def begin(self, prompt: Sequence[int], sampling: object) -> None:
        raise AssertionError("begun by the constructor")

    def step(self, step: DraftStep) -> list[Expansion]:
        for node in step.committed:
            assert node.parent == self.last and node.position == len(self.committed)
            known = self.told.pop(node.id, None)
            assert known is not None or node.id not in self.ids
            self.committed += (node.token,)
            assert known in (None, self.committed)
            self.last = node.id
            self.ids.add(node.id)
        for gone in step.dropped:
            del self.told[gone]
        for node in step.nodes:
            assert node.id not in self.ids
            self.ids.add(node.id)
            self.told[node.id] = (*self._path(node.parent), node.token)
            assert len(self.told[node.id]) == node.position + 1
        assert all(path[: len(self.committed)] == self.committed for path in self.told.values())
        served = [id for id in step.expand if self.rng.random() >= self.refuse]
        return [Expansion(id, self._levels(self._path(id), step)) for id in served]

    def _path(self, id: int) -> Path:
        return self.committed if id == self.last else self.told[id]

    def _levels(self, path: Path, step: DraftStep) -> tuple[tuple[Child, ...], ...]:
        levels = []
        for _ in range(self.rng.randint(0, step.depth)):
            tokens = self.rng.sample(range(VOCAB), self.rng.randint(1, min(step.width, VOCAB)))
            if self.rng.random() < self.luck:
                truth = next_token(path)
                tokens = [truth, *(t for t in tokens if t != truth)][: step.width]
            weights = sorted((self.rng.random() / len(tokens) for _ in tokens), reverse=True)
            levels.append(tuple(Child(token, weight) for token, weight in zip(tokens, weights, strict=True)))
            path = (*path, tokens[0])
        return tuple(levels)
