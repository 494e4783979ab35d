"""A drafter without a model: what followed the last time that the text went like this?

A suffix automaton over prompt and output (Blumer et al., 1985; built online, one token at a time) finds the longest
suffix of the text that occurred before, in amortised constant time per token, and what followed it. Copied text, code
edits and quotations give long matches; a short match is mostly an accident, so matches under `gate` propose nothing
and confidence grows with the length of the match. What a length is really worth is learned by calibration, outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from draft.base import ROOT, Child, DraftStep, Expansion

if TYPE_CHECKING:
    from swarm.model.sampler import Sampling

_SEPARATOR = -1
_LINKS = 64


class SuffixAutomaton:
    """All substrings of a text that grows. State 0 is the empty string; `last[s]` is where `s` ended most recently."""

    def __init__(self) -> None:
        self.next: list[dict[int, int]] = [{}]
        self.link = [-1]
        self.length = [0]
        self.last = [-1]
        self._end = 0
        self._count = 0

    def append(self, token: int) -> None:
        """Add one token at the end of the text."""
        fresh = self._state(self.length[self._end] + 1, {})
        walk = self._end
        while walk >= 0 and token not in self.next[walk]:
            self.next[walk][token] = fresh
            walk = self.link[walk]
        if walk < 0:
            self.link[fresh] = 0
        else:
            target = self.next[walk][token]
            if self.length[target] != self.length[walk] + 1:
                target = self._split(walk, token, target)
            self.link[fresh] = target
        self._end = fresh
        self._touch(fresh)
        self._count += 1

    @property
    def repeated(self) -> tuple[int, int]:
        """The longest suffix of the text that occurred before: its state and length."""
        state = max(0, self.link[self._end])
        return state, self.length[state]

    def follow(self, state: int, length: int, token: int) -> tuple[int, int]:
        """The longest suffix of (string of `length` at `state`) + token that occurs in the text: state and length."""
        while state > 0 and token not in self.next[state]:
            state = self.link[state]
            length = self.length[state]
        if token not in self.next[state]:
            return 0, 0
        return self.next[state][token], length + 1

    def _state(self, length: int, following: dict[int, int]) -> int:
        self.next.append(following)
        self.link.append(0)
        self.length.append(length)
        self.last.append(-1)
        return len(self.next) - 1

    def _split(self, walk: int, token: int, target: int) -> int:
        clone = self._state(self.length[walk] + 1, dict(self.next[target]))
        self.link[clone] = self.link[target]
        self.link[target] = clone
        while walk >= 0 and self.next[walk].get(token) == target:
            self.next[walk][token] = clone
            walk = self.link[walk]
        return clone

    def _touch(self, state: int) -> None:
        # Only recency is at stake, so a bound keeps text such as one token repeated from costing quadratic time.
        for _ in range(_LINKS):
            if state <= 0:
                return
            self.last[state] = self._count
            state = self.link[state]


class SuffixDrafter:
    """Proposes what followed the longest earlier match. Implements `Drafter`; cheap enough to run on the spot.

    gate     matches of fewer tokens propose nothing
    history  earlier texts to match against as well (token ids of earlier runs of the same user, if they agree)
    """

    name = "suffix"

    def __init__(self, gate: int = 3, history: Iterable[Sequence[int]] = ()) -> None:
        self._gate = gate
        self._history = [tuple(text) for text in history]
        self.begin((), None)

    def begin(self, prompt: Sequence[int], sampling: Sampling | None) -> None:
        """Forget everything and start after `prompt`. Sampling makes no difference here."""
        self._text = SuffixAutomaton()
        self._last_id = ROOT
        self._nodes: dict[int, tuple[int, int]] = {}
        for text in self._history:
            for token in (*text, _SEPARATOR):
                self._text.append(token)
        for token in prompt:
            self._text.append(token)

    def step(self, step: DraftStep) -> list[Expansion]:
        """See `Drafter.step`."""
        for node in step.committed:
            self._text.append(node.token)
            self._nodes.pop(node.id, None)
            self._last_id = node.id
        for gone in step.dropped:
            self._nodes.pop(gone, None)
        for node in step.nodes:
            self._nodes[node.id] = (node.parent, node.token)
        return [Expansion(id, self._levels(self._match_at(id), step.depth, step.width)) for id in step.expand]

    def _match_at(self, id: int) -> tuple[int, int]:
        path = []
        while id != self._last_id:
            id, token = self._nodes[id]
            path.append(token)
        match = self._text.repeated
        for token in reversed(path):
            match = self._text.follow(*match, token)
        return match

    def _levels(self, match: tuple[int, int], depth: int, width: int) -> tuple[tuple[Child, ...], ...]:
        levels = []
        for _ in range(depth):
            children = self._children(*match, width)
            if not children:
                break
            levels.append(children)
            match = self._text.follow(*match, children[0].token)
        return tuple(levels)

    def _children(self, state: int, length: int, width: int) -> tuple[Child, ...]:
        """What followed the match, most recent first; nothing when it is shorter than the gate."""
        following: list[tuple[int, int]] = []
        while length >= self._gate and state > 0:
            following = [(-self._text.last[to], token) for token, to in self._text.next[state].items() if token >= 0]
            if following:
                break
            state = self._text.link[state]
            length = self._text.length[state]
        tokens = [token for _, token in sorted(following)[:width]]
        first = _trust(length) * (1.0 if len(following) == 1 else 0.8)
        return tuple(Child(token, first * 0.25**rank) for rank, token in enumerate(tokens))


def _trust(length: int) -> float:
    """Chance that text goes on as after an earlier match of `length` tokens: 0.36 for 3, 0.8 for 8, 0.94 for 16."""
    return 1.0 - 1.0 / (1.0 + (length / 4.0) ** 2)
