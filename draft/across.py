"""A small model as drafter for a target with another tokenizer.

The drafter reads the target's text in its own tokens and proposes text; what it proposes is cut into the target's
tokens. Its belief in a target token is what its own tokens that begin that way have together: a token of its own that
may go on to a longer one of the target ("un" to "unordered") is followed one step further, and where the text ends
within a word, its last own token may as well have been a longer one (known as token healing). Whatever it proposes the
tail decides, so the text of a run is exact all the same.

The model keeps a tree of its own tokens below the text that is certain: `draft.lm` computes it, in slots of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from draft.base import ROOT, Child, DraftNode, DraftStep, Expansion
from draft.drafted import Token
from draft.lm import LmDrafter
from draft.vocabulary import ByteVocabulary
from swarm.model.sampler import Sampling, gumbel

KEPT_PIECES = 2
"""Pieces at the end of the certain text that are not certain in the drafter's tokens: what follows may join them."""
MOST_PENDING = 128
"""Bytes of the certain text that may be left open."""
LEAST_WEIGHT = 0.002
LOOK_WEIGHT = 0.08
"""Chance from which on it is worth a row to see how a piece goes on."""
LOOKS = 4
"""Most rounds of that in a step. All but the first are for pieces that are likely and still open."""
ROOM = 64


@dataclass(frozen=True)
class Pair:
    """Two vocabularies and what their special tokens have to do with each other.

    to_own     special ids of the target to one of the drafter
    to_target  special ids of the drafter to one that ends a text of the target
    """

    target: ByteVocabulary
    own: ByteVocabulary
    to_own: Mapping[int, int]
    to_target: Mapping[int, int]


@dataclass
class _Look:
    """What one walk through the drafter's words found: weights by target token, and what would be good to know."""

    found: dict[int, float] = field(default_factory=dict)
    wanted: list[tuple[float, Token, int]] = field(default_factory=list)

    def add(self, token: int | None, weight: float) -> None:
        if token is not None:
            self.found[token] = self.found.get(token, 0.0) + weight


class AcrossDrafter:
    """Implements `draft.base.Drafter` in the target's tokens by a drafter in its own.

    inner     proposes in its own vocabulary; greedy, its confidences are probabilities. A text longer than its
              context is read from the last half of that on
    rows      most own tokens that one round of a step looks ahead by
    """

    name = "across"

    def __init__(self, inner: LmDrafter, pair: Pair, *, rows: int = 8) -> None:
        self.inner, self.pair = inner, pair
        self._context, self._scratch = inner.layout.context, inner.layout.scratch
        self._rows = rows
        self._sampling = Sampling()

    def another(self) -> AcrossDrafter:
        """A second drafter over the same weights, for a run beside this one's."""
        return AcrossDrafter(self.inner.another(), self.pair, rows=self._rows)

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """See `Drafter.begin`."""
        self._sampling = sampling
        self._nodes: dict[int, DraftNode] = {}
        self._root, self._position = ROOT, len(prompt) - 1
        self._pending = b""
        self._certain: list[int] = []
        for token in prompt:
            self._read(token)
        self._restart()

    def step(self, step: DraftStep) -> list[Expansion]:
        """See `Drafter.step`."""
        for node in step.committed:
            self._read(node.token)
            self._root, self._position = node.id, node.position
            self._nodes.pop(node.id, None)
        for id in step.dropped:
            self._nodes.pop(id, None)
        for node in step.nodes:
            self._nodes[node.id] = node
        self._follow()
        leaves = {id: text for id in step.expand if (text := self._text_of(id)) is not None}
        depths = {id: self._position if id == self._root else self._nodes[id].position for id in leaves}
        levels: dict[int, list[tuple[Child, ...]]] = {id: [] for id in leaves}
        for depth in range(step.depth):
            for id, children in self._propose(leaves, depths, depth + 1).items():
                first = self.pair.target.bytes_of(children[0].token) if children else b""
                if children:
                    levels[id].append(children[: step.width])
                if first:
                    leaves[id] += first
                else:
                    del leaves[id]
        return [Expansion(id, tuple(levels.get(id, ()))) for id in step.expand]

    # What is certain

    def _read(self, token: int) -> None:
        """One more certain token of the target."""
        if token not in self.pair.target.special:
            self._pending += self.pair.target.bytes_of(token)
            return
        self._certain += self.pair.own.encode(self._pending) or ()
        self._pending = b""
        if (own := self.pair.to_own.get(token)) is not None:
            self._certain.append(own)

    def _settle(self) -> None:
        """Whole pieces at the beginning of the pending text become certain own tokens."""
        ends = self.pair.own.pieces(self._pending)
        cut = ends[-KEPT_PIECES - 1] if len(ends) > KEPT_PIECES else 0
        if len(self._pending) - cut > MOST_PENDING:  # a piece without an end, as base64 is: cut where it may hurt
            cut = len(self._pending) - MOST_PENDING // 2
        if cut > 0:
            if (own := self.pair.own.encode(self._pending[:cut])) is not None:
                self._certain += own
                self._pending = self._pending[cut:]

    def _restart(self) -> None:
        """Give the inner drafter its text anew, from the last half of what it can hold."""
        self._settle()
        if not self._certain:
            ends = self.pair.own.pieces(self._pending)
            cut = ends[0] if ends else 0
            self._certain = list(self.pair.own.encode(self._pending[:cut]) or (0,))
            self._pending = self._pending[cut:]
        if len(self._certain) > self._context // 2:
            self._certain = self._certain[-(self._context // 2) :]
        self.inner.begin(self._certain, Sampling())
        self._held = len(self._certain)
        self._own = Token(None, self._certain[-1], self._held - 1, ROOT)
        self._told = {ROOT}
        self._next_id = ROOT + 1
        self._news: list[DraftNode] = []
        self._gone: list[int] = []

    def _follow(self) -> None:
        """Move the root of the own tree to the end of what is certain."""
        self._settle()
        if len(self._certain) + ROOM > self._context:
            self._restart()
            return
        for token in self._certain[self._held :]:
            old = self._own
            new = self._child(old, token)
            # Children's ranks stay known; what they are children of is certain now.
            self._news.append(DraftNode(new.id, old.id, token, new.position))
            self._told.add(new.id)
            new.parent = None
            old.children = {}
            self._own = new
        self._held = len(self._certain)

    def _text_of(self, id: int) -> bytes | None:
        """Pending text and what the path down to a node adds; None when it leads through a special token."""
        parts = []
        while id != self._root:
            node = self._nodes.get(id)
            if node is None or node.token in self.pair.target.special:
                return None
            parts.append(self.pair.target.bytes_of(node.token))
            id = node.parent
        return self._pending + b"".join(reversed(parts))

    # Proposing

    def _propose(
        self, leaves: Mapping[int, bytes], depths: Mapping[int, int], ahead: int
    ) -> dict[int, tuple[Child, ...]]:
        """Children behind each text, `ahead` positions after each leaf's."""
        self._prune()
        tips = {id: path[-1] for id, text in leaves.items() if (path := self._path(text))}
        self._compute([own for tip in tips.values() for own in tip.path() if own.ranks is None])
        looks: dict[int, _Look] = {}
        for again in range(LOOKS + 1):
            looks = {id: self._look(tip) for id, tip in tips.items() if tip.ranks is not None}
            wanted = sorted((want for look in looks.values() for want in look.wanted), key=lambda w: -w[0])
            if again == LOOKS or not wanted or (again and wanted[0][0] < 3 * LOOK_WEIGHT):
                break
            self._compute([self._child(parent, token) for _, parent, token in wanted[: self._rows]])
        return {id: self._ranked(look.found, depths[id] + ahead) for id, look in looks.items()}

    def _path(self, text: bytes) -> list[Token]:
        """The drafter's tokens that spell a text, the root first; empty when it cannot be spelled."""
        tokens = self.pair.own.encode(text)
        if tokens is None:
            return []
        path = [self._own]
        for token in tokens:
            path.append(self._child(path[-1], token))
        return path

    def _child(self, parent: Token, token: int) -> Token:
        child = parent.child(token, self._next_id)
        self._next_id += child.id == self._next_id
        return child

    def _compute(self, owns: Sequence[Token]) -> None:
        """Have the inner drafter rank the children of all that has none ranked."""
        todo = {own.id: own for own in owns if own.ranks is None}
        if not todo:
            return
        nodes = []
        for own in todo.values():
            line = [above for above in own.path() if above.id not in self._told]
            for above in line:
                assert above.parent is not None
                self._told.add(above.id)
                nodes.append(DraftNode(above.id, above.parent.id, above.token, above.position))
        news, self._news = tuple(self._news), []
        gone, self._gone = tuple(self._gone), []
        step = DraftStep(news, gone, tuple(nodes), tuple(todo), width=1 << 10)
        for expansion in self.inner.step(step):
            todo[expansion.id].ranks = expansion.levels[0] if expansion.levels else ()

    def _look(self, tip: Token) -> _Look:
        """What follows the text that ends with `tip`, by target tokens."""
        look = _Look()
        exact = 1.0
        above = tip.parent
        if above is not None and above.ranks:
            spelled = self.pair.own.bytes_of(tip.token)
            chance = {child.token: child.confidence for child in above.ranks}
            longer = {
                token: share
                for token, share in chance.items()
                if token != tip.token and self.pair.own.bytes_of(token).startswith(spelled)
            }
            own = chance.get(tip.token, 0.5 * above.ranks[-1].confidence)
            total = own + sum(longer.values())
            exact = own / total if total > 0 else 1.0
            for token, share in longer.items():
                self._visit(look, self.pair.own.bytes_of(token)[len(spelled) :], share / total, above, token)
        self._go_on(look, b"", exact, tip)
        return look

    def _go_on(self, look: _Look, text: bytes, weight: float, own: Token) -> None:
        """Share `weight` among what follows `own`, of which `text` comes after the tip."""
        left = weight
        for token, share in own.ranks or ():
            part = weight * share
            if part < LEAST_WEIGHT:
                break
            left -= part
            if token in self.pair.own.special:
                look.add(self._first(text) if text else self.pair.to_target.get(token), part)
            else:
                self._visit(look, text + self.pair.own.bytes_of(token), part, own, token)
        if text:
            look.add(self._first(text), max(0.0, left))

    def _visit(self, look: _Look, text: bytes, weight: float, parent: Token, token: int) -> None:
        if len(self.pair.target.pieces(text)) > 1:
            look.add(self._first(text), weight)
            return
        child = parent.children.get(token)
        if child is not None and child.ranks:
            self._go_on(look, text, weight, child)
            return
        if weight >= LOOK_WEIGHT:
            look.wanted.append((weight, parent, token))
        look.add(self._first(text), weight)

    def _first(self, text: bytes) -> int | None:
        """The target's first token of a text."""
        tokens = self.pair.target.encode(text)
        return tokens[0] if tokens else None

    def _ranked(self, found: Mapping[int, float], position: int) -> tuple[Child, ...]:
        """Children best first; where the tail adds noise, ranked with it."""
        if not self._sampling.greedy and found:
            found = self._perturbed(found, position)
        best = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        return tuple(Child(token, min(1.0, share)) for token, share in best if share > 0)

    def _perturbed(self, found: Mapping[int, float], position: int) -> dict[int, float]:
        """Chances that each token is the tail's draw at `position`: known noise added, what is not known set aside."""
        noise = gumbel(self._sampling.seed, position, max(found) + 1)
        scores = {
            token: math.log(max(share, 1e-9)) / self._sampling.temperature + float(noise[token])
            for token, share in found.items()
        }
        top, mass = max(scores.values()), min(1.0, sum(found.values()))
        powers = {token: math.exp(score - top) for token, score in scores.items()}
        total = sum(powers.values())
        return {token: mass * power / total for token, power in powers.items()}

    def _prune(self) -> None:
        """Forget own tokens that no node of the tree leads through, when the inner drafter is short of room."""
        held = [own for own in self._own.walk() if own.id in self._told]
        if len(held) + ROOM < self._scratch:
            return
        kept = {self._own.id}
        for id in list(self._nodes):
            if (text := self._text_of(id)) is not None:
                kept.update(own.id for own in self._path(text))
        for own in held:
            parent = own.parent
            if own.id not in kept and parent is not None and parent.id in kept:
                parent.children.pop(own.token, None)
                self._gone += [below.id for below in own.walk() if below.id in self._told]
