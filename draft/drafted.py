"""The tokens that a drafter follows: the last certain one and the drafted ones behind it, over slots of its own.

The requester's tree is told in ids (`draft.base`); a drafter also computes tokens that have no id yet (the later levels
of a chain). Both are `Token`s here. A token with a slot has what was computed for it there; when it becomes certain
that is moved to its position, so nothing is computed again, and a rollback is nothing but forgetting.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from draft.base import ROOT, Child, DraftNode, DraftStep

if TYPE_CHECKING:
    from swarm.model.held import Allowed


class Token:
    """A drafted token, or the last certain one.

    id       the requester's; -1: it was not told of
    slot     where its drafter keeps what it computed for it; -1: nowhere
    out      what the drafter's layers made of it, for drafters that read that
    ranks    its children, best first, once it was computed
    allowed  which tokens may be children (`DraftStep.allowed`), where that is known
    """

    __slots__ = ("allowed", "children", "id", "out", "parent", "position", "ranks", "slot", "token")

    def __init__(self, parent: Token | None, token: int, position: int, id: int = -1) -> None:
        self.parent, self.token, self.position, self.id = parent, token, position, id
        self.slot = -1
        self.out: torch.Tensor | None = None
        self.ranks: tuple[Child, ...] | None = None
        self.allowed: Allowed | None = None
        self.children: dict[int, Token] = {}

    def child(self, token: int, id: int = -1) -> Token:
        """The token behind this one, made if need be, and then with that id."""
        found = self.children.get(token)
        if found is None:
            found = self.children[token] = Token(self, token, self.position + 1, id)
        return found

    def path(self) -> list[Token]:
        """From the last certain token to this one, both with it."""
        found, walk = [self], self.parent
        while walk is not None:
            found.append(walk)
            walk = walk.parent
        return found[::-1]

    def drafted(self) -> list[int]:
        """Token ids of the path behind the last certain token."""
        return [token.token for token in self.path()[1:]]

    def walk(self) -> Iterator[Token]:
        """This token and all below it."""
        stack = [self]
        while stack:
            token = stack.pop()
            yield token
            stack.extend(token.children.values())


class DraftedTokens:
    """The drafted tokens of one run behind `root`, the last certain one, over slots 0 to `slots` - 1."""

    def __init__(self, root: Token, slots: int) -> None:
        self.plant(root, slots)

    def plant(self, root: Token, slots: int) -> None:
        """Begin anew behind `root`, with all slots free."""
        root.id, self.root = ROOT, root
        self.by_id = {ROOT: root}
        # From the top: a cache reads from the lowest scratch slot in use.
        self._free = [-slot for slot in range(slots)]
        heapq.heapify(self._free)

    @property
    def free(self) -> int:
        return len(self._free)

    def became(self, token: Token, slot: int) -> None:
        """`token` is certain now, and the root; what was computed for it lies in `slot`, which is free for what comes
        after the move (-1: nothing was). For classes that keep the certain text."""

    def apply(self, step: DraftStep) -> None:
        """Take in what became certain, what is gone and what is new. Raises KeyError for an unknown parent."""
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

    def _commit(self, node: DraftNode) -> None:
        old, new = self.root, self.by_id.get(node.id)
        if new is None or new.parent is not old:
            new = old.child(node.token)
        for sibling in list(old.children.values()):
            if sibling is not new:
                self.forget(sibling)
        slot = new.slot
        self.leave_slot(new)
        self.by_id.pop(old.id, None)
        old.children = {}
        new.parent, new.id, self.root = None, node.id, new
        self.by_id[node.id] = new
        self.became(new, slot)

    def forget(self, token: Token) -> None:
        """Drop a drafted token and all below it; their slots are free again."""
        for gone in token.walk():
            self.leave_slot(gone)
            if gone.id >= 0:
                self.by_id.pop(gone.id, None)
        if token.parent is not None:
            token.parent.children.pop(token.token, None)

    def forget_nameless(self) -> None:
        """Give back the slots of tokens that nobody told of and that lead to none."""
        for token in list(self.root.walk()):
            if token.parent is not None and token.id < 0 and all(below.id < 0 for below in token.walk()):
                self.forget(token)

    def place(self, token: Token) -> None:
        """Give a token a slot. Raises IndexError when none is free."""
        token.slot = self.take_slot()

    def leave_slot(self, token: Token) -> None:
        """A token's slot is free again, if it has one."""
        if token.slot >= 0:
            self.give_slot(token.slot)
            token.slot = -1

    def take_slot(self) -> int:
        """A free slot, no longer free. Raises IndexError when there is none."""
        return -heapq.heappop(self._free)

    def give_slot(self, slot: int) -> None:
        heapq.heappush(self._free, -slot)
