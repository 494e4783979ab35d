"""What the target said on lost branches, back into the tree: from every answer to echoes, from echoes to proposals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from draft.calibrate import Calibration
from draft.echo import CONTEXT, Echoes
from draft.tree import Node, TokenTree
from swarm.ring.guide import Guide
from swarm.run.controller import Controller
from swarm.run.proposals import ECHO

_ROUNDS = 8
_FLOOR = 0.02
_FORGET = 256


class Echoing:
    """Hears every answer of a run and proposes what it heard. `tokens`: the run's true tokens so far, as they grow."""

    def __init__(
        self,
        tree: TokenTree,
        tokens: Sequence[int],
        control: Controller,
        calibration: Calibration,
        on: bool,
        guide: Guide | None = None,
    ) -> None:
        self._guide = guide
        # A chain is the first choices of its drafter: an echo would come before them and take their place.
        self._on = on and control.setting.echo and control.setting.mode in ("tree", "stream")
        self._tree, self._tokens, self._control, self._calibration = tree, tokens, control, calibration
        self._echoes = Echoes()
        self._weighed: dict[int, tuple[int, Mapping[int, float]]] = {}
        """By node what its echoes followed from when they were last weighed: they are weighed again when it changed."""

    def heard(self, node: Node, answer: int) -> None:
        """The target's answer after `node`, be its branch alive or lost. Before the root moves."""
        if self._on:
            self._echoes.heard(self._context(node), node.position, answer)

    def propose(self) -> None:
        """Propose wherever something was heard after the same tokens, and that is news and likely enough to matter."""
        if not self._on:
            return
        floor = max(_FLOOR, self._control.row_floor)
        live = self._tree.live
        if len(self._weighed) > 2 * len(live) + _FORGET:
            self._weighed = {id: known for id, known in self._weighed.items() if id in live}
        nodes = [node for node in live.values() if self._echoes.knows(node.token)]
        for _ in range(_ROUNDS):
            nodes = [child for node in nodes if self._tree.chance(node) >= floor for child in self._ask(node, floor)]
            if not nodes:
                return

    def _ask(self, node: Node, floor: float) -> list[Node]:
        """Propose children of one node; returns those after which something was heard too, when there are new ones."""
        others = self._tree.claimed(node)
        followed = (self._echoes.heard_after(node.token), dict(others))
        if self._weighed.get(node.id) == followed:
            return []
        self._weighed[node.id] = followed
        children = self._echoes.children(self._context(node), node.position, others)
        if self._guide is not None:
            children = self._guide.legal(self._tree, node, children)
        if node.proposals.get(ECHO) == children:
            return []
        before = len(node.children)
        self._tree.propose(node, ECHO, children, self._calibration.shares(children), 0.25 * floor)
        if len(node.children) == before:
            return []
        return [child for child in node.children.values() if self._echoes.knows(child.token)]

    def _context(self, node: Node) -> list[int]:
        """The last tokens of the text that ends with `node`."""
        context, top = [node.token], node
        while len(context) < CONTEXT and top.parent is not None:
            top = top.parent
            context.append(top.token)
        before = self._tokens[max(0, top.position - CONTEXT + len(context)) : top.position]
        return [*before, *reversed(context)]
