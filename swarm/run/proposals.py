"""From drafters to the tree: who is asked for what, what they are told, and what their word is worth.

Two drafters at most. The inline one is cheap and asked on the spot; the deferred one works elsewhere, one step at a
time. Where the model has a head for it, the tail drafts as well: frames ask for that, and answers bring it. All feed
the same tree through a calibration of their own. What lost branches teach is beside them
(`swarm.run.echo_proposals`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from draft.base import Child, Drafter, DraftNode, DraftStep, Expansion
from draft.calibrate import Calibration
from draft.tree import Node, TokenTree
from swarm.ring.frame import Drafts
from swarm.ring.guide import Guide
from swarm.run.controller import Controller

INLINE, DEFERRED, ECHO, TAIL, SPELT = 0, 1, 2, 3, 4
_INLINE_ROUNDS = 8
_INLINE_LEAVES = 32
_INLINE_WIDTH = 2
_LEAST_CHANCE = 1e-4

_SURE = 0.95
"""Belief in the tokenizer's own spelling of text that is certain to come, before anything was observed."""

Calibrations = tuple[Calibration, Calibration, Calibration, Calibration, Calibration]
"""Of the inline drafter, of the deferred one, of echoes, of the tail's drafts and of spelt text: by their numbers."""


def fresh_calibrations() -> Calibrations:
    """Before anything was observed."""
    return Calibration(trust=0.9), Calibration(), Calibration(trust=1.0), Calibration(), Calibration(trust=1.0)


class Proposals:
    """Keeps a tree supplied. `spent_ms` is the drafting time since the root moved, `steps` the deferred steps made."""

    def __init__(
        self,
        tree: TokenTree,
        control: Controller,
        calibrations: Calibrations,
        inline: Drafter | None,
        deferred: bool,
        guide: Guide | None = None,
        tail: bool = False,
    ) -> None:
        """`guide`: what the run is held to; drafts that it does not allow are not made. `tail`: the tail drafts too."""
        self._guide = guide
        self._tail, self._roots_undrafted = tail, 0
        self.deferred = deferred
        self.spent_ms = 0.0
        self.steps = 0
        self._tree = tree
        self._control = control
        self._setting = control.setting
        self._calibrations = calibrations
        self._inline = inline
        self._feeds = (_Feed(), _Feed())
        self._out: tuple[float, tuple[Node, ...]] | None = None
        self._roots_unasked = 0
        self._unserved: list[Node] = []
        if inline is None:
            tree.retire(INLINE)
        if not deferred:
            tree.retire(DEFERRED)

    # Truth

    def advanced(self, old: Node, new: Node) -> None:
        """The root moved from `old` to `new`: learn who foresaw it, and tell everybody."""
        for drafter, children in old.proposals.items():
            self._calibrations[drafter].observe(children, new.token)
        for feed in self._feeds:
            feed.commit(new, old)
        self.spent_ms = 0.0
        self._roots_unasked += 1
        self._roots_undrafted += 1

    def settled(self) -> None:
        """An answer changed the tree: tell who knew the lost branches. There may be room for what was not served."""
        self.reask()
        for feed in self._feeds:
            feed.drop(self._tree.dropped)
        self._tree.dropped.clear()

    def reask(self) -> None:
        """What the deferred drafter could not serve may be asked again."""
        for node in self._unserved:
            self._tree.unask(node, DEFERRED)
        self._unserved = []

    @property
    def coverage(self) -> float:
        """Chance that the deferred drafter's proposals hold the next token; 0 without one."""
        return self._calibrations[DEFERRED].coverage if self.deferred else 0.0

    # The inline drafter

    def ask_inline(self) -> None:
        """Let the inline drafter propose wherever it was not asked yet and that is likely enough to matter."""
        if self._inline is None:
            return
        floor = max(0.02, self._control.row_floor)
        for _ in range(_INLINE_ROUNDS):
            leaves = [node for node, _ in self._tree.leaves(INLINE, _INLINE_LEAVES, floor)]
            if not leaves:
                return
            for node in leaves:
                self._tree.ask(node, INLINE)
            step = self._feeds[INLINE].step(self._tree, leaves, self._setting.rows, _INLINE_WIDTH)
            self._adopt(self._inline.step(step), INLINE)

    # The tail's drafts

    def ask_tail(self, now: float) -> int:
        """How many tokens ahead the tail should draft with the next frame."""
        if not self._tail:
            return 0
        levels = self._control.tail_levels(self._calibrations[TAIL], self._roots_undrafted, now)
        if levels:
            self._roots_undrafted = 0
        return levels

    def from_tail(self, node: Node, drafts: Drafts, took_us: int) -> None:
        """What the tail expects after `node`, which is the last known token."""
        self._control.tail_drafted(took_us / 1000.0, len(drafts.token))
        levels = tuple(
            tuple(Child(token, share) for token, share in zip(tokens, shares, strict=True))
            for tokens, shares in zip(drafts.token.tolist(), drafts.share.tolist(), strict=True)
        )
        self._adopt([Expansion(node.id, levels)], TAIL)

    # The deferred drafter

    def work(self, now: float) -> DraftStep | None:
        """The next step for the deferred drafter; None when one is out or nothing is worth it."""
        if self._out is not None or not self._wanted(now):
            return None
        leaves = [node for node, _ in self._leaves()]
        if not leaves:
            return None
        for node in leaves:
            self._tree.ask(node, DEFERRED)
        self._out = (now, tuple(leaves))
        self._roots_unasked = 0
        self.steps += 1
        step = self._feeds[DEFERRED].step(self._tree, leaves, self._setting.depth, self._setting.width)
        if self._guide is None:
            return step
        choices = {leaf.id: self._guide.choice(self._tree, leaf) for leaf in leaves}
        return replace(step, allowed={id: choice for id, choice in choices.items() if choice is not None})

    def drafted(self, expansions: Sequence[Expansion], now: float) -> None:
        """The result of the step that is out."""
        if self._out is None:
            return
        started, leaves = self._out
        self._out = None
        took = (now - started) * 1000.0
        self._control.drafted(took, len(leaves))
        self.spent_ms += took
        served = {expansion.id for expansion in expansions}
        self._adopt(expansions, DEFERRED)
        self._unserved += [node for node in leaves if node.id not in served]

    def failed(self) -> None:
        """The deferred drafter is gone: go on without it."""
        self.deferred, self._out = False, None
        self._tree.retire(DEFERRED)

    def better_wait(self, now: float) -> bool:
        """A waiting send: whether the deferred drafter should have one more step before the frame goes."""
        if not self._wanted(now):
            return False
        if self._out is not None:
            worths = [self._tree.chance(node) for node in self._out[1] if node.live]
        else:
            worths = [worth for _, worth in self._leaves()]
        if not worths:
            return False
        chances = self._tree.unsent(self._setting.rows, self._control.row_floor)
        gain = sum(worths) * self.coverage
        return self._control.keep_drafting(chances, max(worths), gain, self.spent_ms)

    def _wanted(self, now: float) -> bool:
        return self.deferred and self._control.worth_asking(self._calibrations[DEFERRED], self._roots_unasked, now)

    def _leaves(self) -> list[tuple[Node, float]]:
        """What the next step would expand, with what each is worth; nothing when the step is not worth its time."""
        leaves = self._tree.leaves(DEFERRED, self._setting.leaves, max(_LEAST_CHANCE, self._control.row_floor))
        gain = sum(worth for _, worth in leaves) * self.coverage
        return leaves if self._control.worth_step(gain) else []

    def _adopt(self, expansions: Sequence[Expansion], drafter: int) -> None:
        calibration = self._calibrations[drafter]
        least = 0.25 * self._control.row_floor
        for expansion in expansions:
            node = self._tree.live.get(expansion.id)
            for level in expansion.levels:
                if node is None or not level:
                    break
                self._tree.ask(node, drafter)
                legal = level if self._guide is None else self._guide.legal(self._tree, node, level)
                if legal:
                    self._tree.propose(node, drafter, legal, calibration.shares(legal), least)
                    self._extend(node)
                node = node.children.get(level[0].token)

    def _extend(self, node: Node) -> None:
        """Below new nodes, what cannot but follow them."""
        if self._guide is not None:
            self._spell([child for child in node.children.values() if not child.children])

    def spell_root(self) -> None:
        """What the order alone says of the text after the last known token."""
        if self._setting.mode != "plain" and not self._tree.root.children:
            self._spell([self._tree.root])

    def _spell(self, nodes: list[Node]) -> None:
        """Below these nodes what is forced; where text is certain and not how it is spelt, the tokenizer's own spelling
        as a guess, and what is forced behind it."""
        if self._guide is None:
            return
        floor = max(_LEAST_CHANCE, self._control.row_floor)
        for node in nodes:
            walk: Node | None = node
            while walk is not None and (tip := self._guide.extend(self._tree, walk, floor)) is not None:
                walk = self._propose_spelling(tip)

    def _propose_spelling(self, node: Node) -> Node | None:
        """The guess for what follows, where there is one that is new."""
        token = -1 if self._guide is None or SPELT in node.proposals else self._guide.likely(self._tree, node)
        if token < 0:
            return None
        raw = (Child(token, _SURE),)
        self._tree.propose(node, SPELT, raw, self._calibrations[SPELT].shares(raw), 0.25 * self._control.row_floor)
        return node.children.get(token)


class _Feed:
    """What one drafter was told, and what it must hear next."""

    def __init__(self) -> None:
        self._told: set[int] = set()
        self._committed: list[DraftNode] = []
        self._dropped: list[int] = []

    def commit(self, node: Node, parent: Node) -> None:
        self._told.discard(node.id)
        self._committed.append(node.known_as(parent.id))

    def drop(self, ids: Sequence[int]) -> None:
        for id in ids:
            if id in self._told:
                self._told.remove(id)
                self._dropped.append(id)

    def step(self, tree: TokenTree, leaves: Sequence[Node], depth: int, width: int) -> DraftStep:
        nodes = []
        for leaf in leaves:
            for node in tree.path(leaf):
                if node.id not in self._told:
                    assert node.parent is not None
                    self._told.add(node.id)
                    nodes.append(node.known_as(node.parent.id))
        expand = tuple(node.id for node in leaves)
        step = DraftStep(tuple(self._committed), tuple(self._dropped), tuple(nodes), expand, depth, width)
        self._committed, self._dropped = [], []
        return step
