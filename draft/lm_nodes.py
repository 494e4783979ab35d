"""Which tokens a model drafter has computed, and in which slots of its own cache they lie.

The requester's tree is told in ids; a drafter also computes tokens that have no id yet (the later levels of a chain).
Both are `Guess`es here. A guess with a slot has its key and value in that scratch slot; when it becomes certain they
are copied to its position, so nothing that was computed is computed again, and a rollback is nothing but forgetting.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np

from draft.base import ROOT, Child, DraftNode, DraftStep
from swarm.model.rows import Commits, Layout, Rows


class Guess:
    """One token. `slot` is its scratch slot or -1; `ranks` are its children, best first, once it was computed; `mask`
    says which tokens may be children (`DraftStep.masks`), where that is known."""

    __slots__ = ("children", "id", "mask", "parent", "position", "ranks", "slot", "token")

    def __init__(self, parent: Guess | None, token: int, position: int, id: int = -1) -> None:
        self.parent = parent
        self.token = token
        self.position = position
        self.id = id
        self.slot = -1
        self.ranks: tuple[Child, ...] | None = None
        self.mask: bytes | None = None
        self.children: dict[int, Guess] = {}

    def child(self, token: int) -> Guess:
        """The guess for `token` behind this one, made if need be."""
        found = self.children.get(token)
        if found is None:
            found = self.children[token] = Guess(self, token, self.position + 1)
        return found

    def walk(self) -> Iterator[Guess]:
        """This guess and everything below it."""
        stack = [self]
        while stack:
            guess = stack.pop()
            yield guess
            stack.extend(guess.children.values())


class Guesses:
    """The guesses of one run over the scratch slots of `layout`.

    root     the last certain token
    waiting  certain tokens, the last of them the root, whose rows were not computed yet
    """

    def __init__(self, layout: Layout, root: Guess, reserved: int = 0) -> None:
        self.layout = layout
        self.root = root
        self.waiting: list[Guess] = []
        root.id = ROOT
        self._by_id = {ROOT: root}
        # A cache reads from the lowest scratch slot in use, so slots are taken from the top.
        self._free = [-slot for slot in range(layout.scratch - reserved)]
        heapq.heapify(self._free)
        self._copies: list[tuple[int, int]] = []

    def __contains__(self, id: int) -> bool:
        return id in self._by_id

    def __getitem__(self, id: int) -> Guess:
        return self._by_id[id]

    @property
    def free(self) -> int:
        return len(self._free)

    def apply(self, step: DraftStep) -> None:
        """Take in what became certain, what is gone and what is new. Raises KeyError for an unknown parent."""
        for node in step.committed:
            self._commit(node)
        for id in step.dropped:
            guess = self._by_id.get(id)
            if guess is not None and guess is not self.root:
                self.forget(guess)
        for node in step.nodes:
            guess = self._by_id[node.parent].child(node.token)
            if guess.id >= 0 and guess.id != node.id:
                self._by_id.pop(guess.id, None)
            guess.id = node.id
            self._by_id[node.id] = guess

    def _commit(self, node: DraftNode) -> None:
        old = self.root
        new = self._by_id.get(node.id)
        if new is None or new.parent is not old:
            new = old.child(node.token)
        for sibling in list(old.children.values()):
            if sibling is not new:
                self.forget(sibling)
        if new.slot >= 0:
            self._copies.append((new.slot, new.position))
            self.give_slot(new.slot)
            new.slot = -1
        else:
            self.waiting.append(new)
        self._by_id.pop(old.id, None)
        old.children = {}
        new.parent, new.id, self.root = None, node.id, new
        self._by_id[node.id] = new

    def forget(self, guess: Guess) -> None:
        """Drop a guess and everything below it; their slots are free again."""
        for gone in guess.walk():
            if gone.slot >= 0:
                self.give_slot(gone.slot)
                gone.slot = -1
            if gone.id >= 0:
                self._by_id.pop(gone.id, None)
        if guess.parent is not None:
            guess.parent.children.pop(guess.token, None)

    def forget_nameless(self) -> None:
        """Give back the slots of guesses that have no id and nothing with an id below them."""
        for guess in list(self.root.walk()):
            if guess.parent is not None and guess.id < 0 and all(below.id < 0 for below in guess.walk()):
                self.forget(guess)

    def missing(self, guess: Guess) -> list[Guess]:
        """The guess and those ancestors that have to be computed first, from the root's side."""
        path: list[Guess] = []
        walk: Guess | None = guess
        while walk is not None and walk is not self.root and walk.slot < 0:
            path.append(walk)
            walk = walk.parent
        path.reverse()
        return path

    def place(self, guess: Guess) -> None:
        """Give a guess a slot. Raises IndexError when none is free."""
        guess.slot = self.take_slot()

    def take_slot(self) -> int:
        """A free slot, no longer free. Raises IndexError when there is none."""
        return -heapq.heappop(self._free)

    def give_slot(self, slot: int) -> None:
        heapq.heappush(self._free, -slot)

    def take_commits(self) -> Commits:
        """Copies since the last call; they go with the next forward."""
        copies, self._copies = self._copies, []
        slots, positions = (np.array([c[i] for c in copies], np.uint32) for i in range(2))
        return Commits(slots, positions)

    def take_waiting(self) -> list[Guess]:
        waiting, self.waiting = self.waiting, []
        return waiting

    def rows(self, waiting: list[Guess], guesses: list[Guess]) -> Rows:
        """Rows of certain tokens (the last one answered) and of placed guesses (all answered), in this order."""
        scratch, prefix = self.layout.scratch, self.root.position + 1
        count = len(waiting) + len(guesses)
        ancestors = np.zeros((count, scratch // 8), np.uint8)
        slots = [scratch + g.position for g in waiting] + [g.slot for g in guesses]
        seen = [g.position + 1 for g in waiting] + [prefix] * len(guesses)
        for row, guess in enumerate(guesses, len(waiting)):
            walk: Guess | None = guess
            while walk is not None and walk is not self.root:
                ancestors[row, walk.slot >> 3] |= 1 << (walk.slot & 7)
                walk = walk.parent
        want = np.ones(count, np.bool_)
        want[: max(0, len(waiting) - 1)] = False
        both = waiting + guesses
        return Rows(
            slot=np.array(slots, np.uint32),
            position=np.array([g.position for g in both], np.uint32),
            prefix=np.array(seen, np.uint32),
            ancestors=ancestors,
            token=np.array([g.token for g in both], np.int32),
            want=want,
        )
