"""What drafters that read hidden rows of the target share: the certain text, the drafted tokens behind it, and which of
the text's hidden rows came.

A certain row is asked for by its position, a drafted one by its node, which it keeps when it becomes certain. What
never comes leaves a gap that nobody sees: such a drafter knows a little less then.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import torch

from draft.base import ROOT, Child, DraftNode, DraftStep
from draft.taps import TapStore, at_position

WINDOW = 640
"""Positions back from the last token whose rows are still waited for. What a drafter of one layer makes of text farther
back changes little, and the rows of a long prompt would be megabytes."""


class Token:
    """A drafted token, or the last certain one. `slot` and `out` are its drafter's; `ranks` its children once known."""

    __slots__ = ("children", "id", "out", "parent", "position", "ranks", "slot", "token")

    def __init__(self, parent: Token | None, token: int, position: int, id: int = -1) -> None:
        self.parent, self.token, self.position, self.id = parent, token, position, id
        self.slot = -1
        self.out: torch.Tensor | None = None
        self.ranks: tuple[Child, ...] | None = None
        self.children: dict[int, Token] = {}

    def child(self, token: int) -> Token:
        """The token behind this one, made if need be."""
        found = self.children.get(token)
        if found is None:
            found = self.children[token] = Token(self, token, self.position + 1)
        return found

    def path(self) -> list[Token]:
        """From the last certain token to this one, both with it."""
        found, walk = [self], self.parent
        while walk is not None:
            found.append(walk)
            walk = walk.parent
        return found[::-1]

    def walk(self) -> Iterator[Token]:
        """This token and all below it."""
        stack = [self]
        while stack:
            token = stack.pop()
            yield token
            stack.extend(token.children.values())


class TappedText:
    """The text of one run and its tree, over `slots` slots for drafted tokens.

    tokens   certain ones by position; root: the last of them
    pending  positions whose hidden rows have not been used yet, ascending
    moved    (slot, position) of drafted tokens that became certain since it was emptied
    """

    def __init__(self, slots: int, store: TapStore) -> None:
        self._store, self._slots = store, slots
        self.tokens: list[int] = []
        self._ids: list[int] = []
        self.begin((0,))

    def begin(self, prompt: Sequence[int]) -> int:
        """Start after `prompt`; how many leading tokens are those of the text before."""
        pairs = zip(self.tokens, prompt, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(prompt)))
        self.tokens = list(prompt)
        self._ids = [-1] * (len(prompt) - 1) + [ROOT]
        self.root = Token(None, prompt[-1], len(prompt) - 1, ROOT)
        self.by_id = {ROOT: self.root}
        self._free = list(range(self._slots))
        self.pending = list(range(max(0, len(prompt) - WINDOW), len(prompt)))
        self.moved: list[tuple[int, int]] = []
        return shared

    @property
    def free(self) -> int:
        return len(self._free)

    def names(self, position: int) -> tuple[int, ...]:
        """The names of a certain token's hidden row."""
        id = self._ids[position]
        return (at_position(position),) if id < 0 else (id, at_position(position))

    def apply(self, step: DraftStep) -> None:
        """Take in a step's changes. Raises KeyError for a node whose parent nobody told of."""
        for node in step.committed:
            self._commit(node)
        for id in step.dropped:
            token = self.by_id.get(id)
            if token is not None and token is not self.root:
                self.forget(token)
        for node in step.nodes:
            token = self.by_id[node.parent].child(node.token)
            if token.id >= 0 and token.id != node.id:
                self.by_id.pop(token.id, None)
            token.id = node.id
            self.by_id[node.id] = token
        oldest = self.root.position - WINDOW
        self.pending = [position for position in self.pending if position > oldest]

    def _commit(self, node: DraftNode) -> None:
        old, new = self.root, self.by_id.get(node.id)
        if new is None or new.parent is not old:
            new = old.child(node.token)
        for sibling in list(old.children.values()):
            if sibling is not new:
                self.forget(sibling)
        if new.slot >= 0:
            self.moved.append((new.slot, new.position))
            self.give_slot(new)
        self.by_id.pop(old.id, None)
        old.children = {}
        new.parent, new.id, self.root = None, node.id, new
        self.by_id[node.id] = new
        self.tokens.append(new.token)
        self._ids.append(new.id)
        self.pending.append(new.position)

    def forget(self, token: Token) -> None:
        """Drop a drafted token and all below it."""
        for gone in token.walk():
            self.give_slot(gone)
            if gone.id >= 0:
                self.by_id.pop(gone.id, None)
        if token.parent is not None:
            token.parent.children.pop(token.token, None)

    def forget_nameless(self) -> None:
        """Give back the slots of tokens that nobody told of and that lead to none."""
        for token in list(self.root.walk()):
            if token.parent is not None and token.id < 0 and all(below.id < 0 for below in token.walk()):
                self.forget(token)

    def take_slot(self, token: Token) -> None:
        """Give a token a slot. Raises IndexError when none is free."""
        token.slot = heapq.heappop(self._free)

    def give_slot(self, token: Token) -> None:
        if token.slot >= 0:
            heapq.heappush(self._free, token.slot)
            token.slot = -1

    def came(self, first: int, last: int) -> list[tuple[int, torch.Tensor]]:
        """Of the pending positions in [first, last), those whose hidden rows came, with them; they pend no more."""
        found, still = [], []
        for position in self.pending:
            row = self._store.take(*self.names(position)) if first <= position < last else None
            if row is None:
                still.append(position)
            else:
                found.append((position, row))
        self.pending = still
        return found

    def awaits(self, position: int) -> bool:
        """Whether the hidden row of a certain token was asked for and may still come."""
        return self._store.awaits(*self.names(position))
