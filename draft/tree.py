"""The token tree: what may come next, how likely, which of it was sent and in which scratch slot.

The root is the last known true token. Every other node is a guess with a share: the calibrated chance that it
follows its parent. The chance of a whole path is the product of its shares; nodes are sent and expanded in the order
of that product (best first), so a parent always goes before its children. Scores are sums of logarithms from the
very first root: moving the root changes no order, so nothing needs to be sorted again.

Pure bookkeeping: no clock, no model, no network.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

from draft.base import ROOT, Child
from draft.node import Node

_LEAST_SHARE = 1e-6
_SLACK = 1024


__all__ = ["Node", "TokenTree"]


class TokenTree:
    """A tree over `scratch` slots, with proposals from `drafters` (told apart by small numbers).

    Nodes at a position beyond `horizon` are of no use and are never made; one with a token of `ends` is known but never
    sent or expanded, because nothing follows it. With `narrow` a node keeps its first child only: the tree is a chain.
    `refiner`: a drafter that knows what the others proposed when it proposes.
    """

    def __init__(
        self,
        token: int,
        position: int,
        scratch: int,
        *,
        drafters: Sequence[int] = (0,),
        horizon: int = 1 << 30,
        narrow: bool = False,
        ends: AbstractSet[int] = frozenset(),
        refiner: int = -1,
    ) -> None:
        self.root = Node(ROOT, None, token, position, 1.0)
        self.live: dict[int, Node] = {ROOT: self.root}
        self.dropped: list[int] = []
        self._scratch = scratch
        self._horizon = horizon
        self._narrow = narrow
        self._refiner = refiner
        self._ends = ends
        self._next_id = ROOT + 1
        # The highest slot first: stages read from the lowest slot in sight on, so a short tree costs them little.
        self._free = [-slot for slot in reversed(range(scratch))]
        self._unsent: list[tuple[float, int, int]] = []
        self._leaves: dict[int, list[tuple[float, int, int]]] = {drafter: [] for drafter in drafters}
        self._offer_leaf(self.root)

    @property
    def free_slots(self) -> int:
        return len(self._free)

    def chance(self, node: Node) -> float:
        """Chance that every token from the root down to `node` is right."""
        return math.exp(node.score - self.root.score)

    def path(self, node: Node) -> list[Node]:
        """Nodes below the root down to `node`, in order of position."""
        nodes = []
        walk: Node | None = node
        while walk is not None and walk is not self.root:
            nodes.append(walk)
            walk = walk.parent
        nodes.reverse()
        return nodes

    # Proposals

    def propose(
        self, node: Node, drafter: int, raw: Sequence[Child], shares: Sequence[float], least: float = 0.0
    ) -> None:
        """Take a drafter's children of `node`: `raw` as it gave them (kept for calibration), `shares` calibrated.

        They take the place of what it gave before. Where drafters name the same token the larger share holds, but
        the word of the refiner stands and what others say shares the rest; shares of one node never sum to more
        than 1. Children of a share under `least` are not made.
        """
        node.proposals[drafter] = tuple(raw)
        if not node.live or not self._fertile(node) or (self._narrow and node.children):
            return
        pairs = zip(raw[:1] if self._narrow else raw, shares, strict=False)
        node.claims[drafter] = {child.token: share for child, share in pairs if share >= least}
        word = _refined(self.claimed(node), node.claims.get(self._refiner, {}))
        merged = {token: max(_LEAST_SHARE, word.get(token, 0.0)) for token in (*word, *node.children)}
        scale = 1.0 / max(1.0, sum(merged.values()))
        node.covered = sum(share * scale for share in merged.values())
        for token, share in merged.items():
            known = node.children.get(token)
            if known is None:
                self._grow(node, token, share * scale)
            elif known.share != share * scale:
                self._reweigh(known, share * scale)
        self._offer_leaf(node)

    def force(self, node: Node, token: int) -> Node | None:
        """The one child that can follow `node`, made if need be; None where nothing may follow it."""
        if not node.live or not self._fertile(node):
            return None
        child = node.children.get(token)
        if child is None:
            if self._narrow and node.children:
                return None
            self._grow(node, token, 1.0)
        elif child.share != 1.0:
            self._reweigh(child, 1.0)
        node.covered = 1.0
        return node.children[token]

    def claimed(self, node: Node) -> dict[int, float]:
        """Shares of tokens after `node` by all drafters but the refiner; empty when none proposed any."""
        merged: dict[int, float] = {}
        for drafter, claims in node.claims.items():
            if drafter != self._refiner:
                for token, share in claims.items():
                    merged[token] = max(share, merged.get(token, 0.0))
        return merged

    def retire(self, drafter: int) -> None:
        """Nobody will ask for leaves of `drafter` any more."""
        self._leaves.pop(drafter, None)

    def leaves(self, drafter: int, count: int, floor: float) -> list[tuple[Node, float]]:
        """Nodes worth a proposal of `drafter`, best first, with the chance that its proposal would matter.

        That is the chance of the node times what its children leave uncovered. Nodes under `floor` are left out, and
        so are nodes that this drafter was asked for.
        """
        found: list[tuple[Node, float]] = []
        heap = self._leaves.get(drafter, [])
        kept: dict[int, tuple[float, int, int]] = {}
        while heap and len(found) < count:
            entry = heapq.heappop(heap)
            node = self.live.get(entry[2])
            if node is None or node.asked >> drafter & 1 or node.id in kept or entry[0] != self._leaf_key(node):
                continue
            kept[node.id] = entry
            worth = math.exp(-entry[0] - self.root.score)
            if worth < floor:
                break
            if not (self._narrow and node.children):
                found.append((node, worth))
        for entry in kept.values():
            heapq.heappush(heap, entry)
        return found

    def ask(self, node: Node, drafter: int) -> None:
        """Remember that `drafter` was asked for `node`."""
        node.asked |= 1 << drafter

    def unask(self, node: Node, drafter: int) -> None:
        """`drafter` did not serve `node`: it may be asked again."""
        if node.live:
            node.asked &= ~(1 << drafter)
            self._offer_leaf(node)

    # Sending

    def unsent(self, count: int, floor: float) -> list[float]:
        """Chances of the best unsent nodes, best first; nothing is taken."""
        found: dict[int, tuple[float, int, int]] = {}
        while len(found) < count and (node := self._peek()) and self.chance(node) >= floor:
            found[node.id] = heapq.heappop(self._unsent)
        for entry in found.values():
            heapq.heappush(self._unsent, entry)
        return [math.exp(-entry[0] - self.root.score) for entry in found.values()]

    def take(self, count: int, floor: float) -> list[Node]:
        """Mark the most probable unsent nodes as sent, each in a scratch slot of its own; parents come first."""
        taken: list[Node] = []
        while len(taken) < count and self._free and (node := self._peek()) and self.chance(node) >= floor:
            heapq.heappop(self._unsent)
            node.slot = -heapq.heappop(self._free)
            node.sent = True
            node.depth = node.position - self.root.position
            taken.append(node)
        return taken

    def release(self, slot: int) -> None:
        """A scratch slot is free again: its node was committed and the commit is in a frame that goes before."""
        heapq.heappush(self._free, -slot)

    # Truth

    def advance(self) -> Iterator[tuple[Node, Node]]:
        """Move the root while the token after it is known; yields (old root, new root) for each step.

        Losing branches are dropped at each step and their slots freed. The new root keeps the slot it was sent in,
        if any: the caller commits it and then releases it. A token that nobody proposed becomes a new, unsent node.
        """
        while self.root.answer >= 0:
            old, token = self.root, self.root.answer
            new = old.children.pop(token, None)
            for loser in old.children.values():
                self._drop(loser)
            if new is None:
                new = Node(self._next_id, old, token, old.position + 1, 1.0)
                self._next_id += 1
                self.live[new.id] = new
                self._offer_leaf(new)
            del self.live[old.id]
            old.live = False
            old.children = {}
            new.parent = None
            self.root = new
            self._sweep()
            yield old, new

    def forget_sent(self) -> None:
        """Every row in flight is lost: all scratch slots are free and every drafted node is unsent again."""
        self._free = [-slot for slot in reversed(range(self._scratch))]
        self._unsent = []
        for node in self.live.values():
            node.slot, node.sent, node.answer = -1, False, -1
            if node is not self.root:
                self._offer_unsent(node)

    # Insides

    def _fertile(self, node: Node) -> bool:
        return node.position < self._horizon and (node.token not in self._ends or node is self.root)

    def _peek(self) -> Node | None:
        while self._unsent:
            entry = self._unsent[0]
            node = self.live.get(entry[2])
            if node is not None and not node.sent and node is not self.root and entry[0] == -node.score:
                return node
            heapq.heappop(self._unsent)
        return None

    def _grow(self, parent: Node, token: int, share: float) -> None:
        node = Node(self._next_id, parent, token, parent.position + 1, share)
        self._next_id += 1
        parent.children[token] = node
        self.live[node.id] = node
        self._offer_unsent(node)
        self._offer_leaf(node)

    def _reweigh(self, node: Node, share: float) -> None:
        shift = math.log(share) - math.log(node.share)
        node.share = share
        stack = [node]
        while stack:
            walk = stack.pop()
            walk.score = (walk.parent.score if walk.parent else 0.0) + math.log(walk.share)
            if not walk.sent:
                self._offer_unsent(walk)
            self._offer_leaf(walk)
            if shift:
                stack.extend(walk.children.values())

    def _offer_unsent(self, node: Node) -> None:
        # Equal scores: the smaller position first, so that a parent still goes before its child.
        if node.token not in self._ends:
            heapq.heappush(self._unsent, (-node.score, node.position, node.id))

    def _offer_leaf(self, node: Node) -> None:
        if self._fertile(node):
            for drafter, heap in self._leaves.items():
                if not node.asked >> drafter & 1:
                    heapq.heappush(heap, (self._leaf_key(node), node.position, node.id))

    def _sweep(self) -> None:
        """Forget heap entries of nodes that are gone: only popping would, and the least likely are never popped."""
        for heap in (self._unsent, *self._leaves.values()):
            if len(heap) > 4 * len(self.live) + _SLACK:
                heap[:] = [entry for entry in heap if entry[2] in self.live]
                heapq.heapify(heap)

    def _leaf_key(self, node: Node) -> float:
        return -(node.score + math.log(max(_LEAST_SHARE, 1.0 - node.covered)))

    def _drop(self, top: Node) -> None:
        stack = [top]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            node.live = False
            del self.live[node.id]
            self.dropped.append(node.id)
            if node.slot >= 0:
                self.release(node.slot)


def _refined(claims: dict[int, float], word: dict[int, float]) -> dict[int, float]:
    """Shares when a drafter that knows `claims` gives `word` for some tokens: the others keep their proportions."""
    if not word:
        return claims
    rest = max(0.0, 1.0 - sum(word.values())) / max(_LEAST_SHARE, 1.0 - sum(claims.get(token, 0.0) for token in word))
    return {token: share * rest for token, share in claims.items() if token not in word} | word
