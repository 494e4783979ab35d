"""What a run's order says of the nodes of its token tree: which drafts are legal, and what is forced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from draft.base import Child
from draft.tree import Node, TokenTree
from swarm.model.held import Allowed, Matcher
from swarm.model.shaping import Shaping

_KNOWN = 4096
_FEW = 4
_LEAST = 1e-6


class Guide(ABC):
    """Asked about live nodes; it follows the root by what it is told in `advanced`."""

    @abstractmethod
    def after(self, tree: TokenTree, node: Node) -> Allowed:
        """What may follow a live node of the tree. Raises ModelError."""

    def advanced(self, token: int) -> None:  # noqa: B027 -- who needs only positions has nothing to note
        """The root moved on to a node of this token."""

    def legal(self, tree: TokenTree, node: Node, children: Sequence[Child]) -> tuple[Child, ...]:
        """Those of a drafter's children of `node` that the constraint allows, each as likely as it is among these.

        Where there are only a few and the drafter thought of none, all of them.
        """
        allowed = self.after(tree, node)
        legal = [child for child in children if allowed.allows(child.token)]
        if not legal:
            few = allowed.few(_FEW)
            return tuple(Child(token, 1.0 / len(few)) for token in few)
        mass = sum(child.confidence for child in legal)
        left = mass + max(0.0, 1.0 - sum(child.confidence for child in children))
        return tuple(Child(child.token, child.confidence / max(left, mass, _LEAST)) for child in legal)

    def likely(self, tree: TokenTree, node: Node) -> int:
        """The token that most likely follows a live node by the order alone, where it is not forced; -1: none."""
        return -1

    def choice(self, tree: TokenTree, node: Node) -> Allowed | None:
        """What may follow a live node, where several tokens may; None: no drafter need look at it."""
        return None

    def extend(self, tree: TokenTree, node: Node, floor: float) -> Node | None:
        """Make what is forced below a node that is likely enough to be sent: a chain of certain children. The last of
        them, where more may follow."""
        walk: Node | None = node
        while walk is not None and tree.chance(walk) >= floor:
            token = self.after(tree, walk).forced
            if token < 0:
                return walk
            walk = tree.force(walk, token)
        return None


class ConstraintGuide(Guide):
    """The requester's own matcher of the run's constraint."""

    def __init__(self, held_to: Matcher) -> None:
        self._held_to = held_to
        self._answer: list[int] = []
        """Tokens of the answer down to the root, which is its last one."""
        self._known: dict[int, Allowed] = {}

    def advanced(self, token: int) -> None:
        self._answer.append(token)
        if len(self._known) > _KNOWN:  # nodes that are gone are never asked for again
            self._known.clear()

    def after(self, tree: TokenTree, node: Node) -> Allowed:
        found = self._known.get(node.id)
        if found is None:
            path = [below.token for below in tree.path(node)]
            found = self._known[node.id] = self._held_to.after([*self._answer, *path])
        return found

    def likely(self, tree: TokenTree, node: Node) -> int:
        if self.after(tree, node).forced >= 0:
            return -1
        return self._held_to.spelling([*self._answer, *(below.token for below in tree.path(node))])

    def choice(self, tree: TokenTree, node: Node) -> Allowed | None:
        found = self.after(tree, node)
        return found if found.bits else None


class DictatedGuide(Guide):
    """An answer of which the order gives single tokens: the first ones, or those that close a thought; else any may
    come."""

    def __init__(self, shaping: Shaping, vocab: int) -> None:
        self._shaping = shaping
        self._any = Allowed(-1, b"\xff" * -(-vocab // 8))
        self._answer: list[int] = []
        self._known: dict[int, Allowed] = {}

    def advanced(self, token: int) -> None:
        self._answer.append(token)
        if len(self._known) > _KNOWN:
            self._known.clear()

    def after(self, tree: TokenTree, node: Node) -> Allowed:
        found = self._known.get(node.id)
        if found is None:
            path = [below.token for below in tree.path(node)]
            token = self._shaping.dictated(node.position + 1, [*self._answer, *path])
            found = self._known[node.id] = self._any if token < 0 else Allowed(token)
        return found
