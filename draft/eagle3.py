"""EAGLE-3 heads as drafters (Li et al., 2025, "EAGLE-3: Scaling up Inference Acceleration of Large Language Models via
Training-Time Test"; laid out as the authors do, or as `speculators` does).

For a token at position p the head reads its embedding beside g, `fc` of the target's rows of several layers at p - 1;
where those are not known yet, g is what the head itself made at p - 1. Its layer attends to what it made before, and
gives scores over a vocabulary of its own (`d2t` says how far each of its ids lies from the target's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from draft.base import DraftStep, Expansion
from draft.drafted import Token
from draft.tap_reader import BATCH, TappedWeights, TapReader
from draft.tapped_layer import normed
from swarm.model.sampler import Sampling

SLOTS = 256


@dataclass(frozen=True, kw_only=True)
class Eagle3Weights(TappedWeights):
    """A head, in memory; its first layer takes embedding and g side by side.

    before   norms of each tap, or one of all (None: none)
    plain_residual   whether g goes past the first layer as it is, not normed
    norms_out        whether g of the next token is the last norm's, as the scores are
    """

    before: tuple[torch.Tensor, ...]
    plain_residual: bool = True
    norms_out: bool = False

    def joined(self, rows: torch.Tensor) -> torch.Tensor:
        """g of the target's rows [n, taps x hidden_size]."""
        rows = rows.to(self.fc.dtype)
        if len(self.before) == 1:
            rows = normed(rows, self.before[0], self.eps)
        elif self.before:
            parts = rows.chunk(len(self.before), -1)
            rows = torch.cat([normed(p, w, self.eps) for p, w in zip(parts, self.before, strict=True)], -1)
        return super().joined(rows)

    def entering(self, tokens: torch.Tensor, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What goes past the first layer, and what its attention is given, of tokens and g [..., d]."""
        layer = self.layers[0]
        embedded = layer.norm("input_layernorm", self.table[tokens].to(given.dtype))
        inner = layer.norm("hidden_norm", given)
        return given if self.plain_residual else inner, torch.cat([embedded, inner], -1)


class Eagle3Drafter(TapReader[Eagle3Weights]):
    """Implements `draft.base.Drafter` and `draft.taps.ReadsTaps` with an EAGLE-3 head."""

    name = "eagle3"

    def __init__(self, weights: Eagle3Weights, context: int) -> None:
        super().__init__(weights, context, SLOTS)
        self._present = np.zeros(0, np.bool_)

    def another(self) -> Eagle3Drafter:
        """One for another run, over the same weights."""
        return Eagle3Drafter(self.weights, self.context)

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """See `TapReader.begin`."""
        super().begin(prompt, sampling)
        self._present[SLOTS:] = self._true
        self._text.pending = [p for p in self._text.pending if p + 1 >= len(self._true) or not self._true[p + 1]]

    @torch.inference_mode()
    def step(self, step: DraftStep) -> list[Expansion]:
        """See `Drafter.step`. Where rows of the target that were asked for are on their way, nothing is served yet."""
        text = self._text
        self._follow(step, 1)
        self._move()
        self._learn()
        if not self._ready():
            return []
        wanted = self._served(step)
        self._compute(wanted)
        levels = {id(token): [(token.ranks or ())[: step.width]] for token in wanted}
        tips = {id(token): token for token in wanted if token.ranks}
        for _ in range(1, step.depth):
            tips = {
                key: tip.child(tip.ranks[0].token)
                for key, tip in tips.items()
                if tip.ranks and tip.position + 2 < self.context
            }
            if not tips or sum(tip.slot < 0 for tip in tips.values()) > text.free:
                break
            self._compute(list(tips.values()))
            for key, tip in tips.items():
                levels[key].append((tip.ranks or ())[: step.width])
        return [Expansion(token.id, tuple(levels[id(token)])) for token in wanted]

    # Certain text

    def _learn(self) -> None:
        """Compute the certain tokens whose rows of the target have come: at p for the row of p - 1."""
        came = self._text.came(0, len(self._text.tokens) - 1)
        for start in range(0, len(came), BATCH):
            part = came[start : start + BATCH]
            rows = self._joined(torch.stack([row for _, row in part]))
            positions = np.array([position + 1 for position, _ in part])
            tokens = [self._text.tokens[p] for p in positions]
            slots = positions + SLOTS
            self._present[slots] = self._true[positions] = True
            seen = self._present & (np.arange(len(self._present)) >= SLOTS)
            sight = seen & (np.arange(len(seen)) <= slots[:, None])
            out = self._forward(tokens, rows, positions, slots, sight)
            if positions[-1] == self._text.root.position:
                self._note([self._text.root], out[-1:])

    def _ready(self) -> bool:
        """Whether the last certain token is computed, from the target's rows or, where those will not come, from what
        the head itself made."""
        root, before = self._text.root, self._text.root.position - 1
        if before < 0 or (before + 1 < len(self._true) and self._true[before + 1] and root.out is not None):
            return True
        return not self._text.awaits(before) and root.out is not None

    def _move(self) -> None:
        """Keys and values of drafted tokens that became certain go to their positions, until better ones come."""
        for slot, position in self._text.moved:
            self._keys[:, :, SLOTS + position] = self._keys[:, :, slot]
            self._values[:, :, SLOTS + position] = self._values[:, :, slot]
            self._present[SLOTS + position] = True
        self._text.moved.clear()

    # Drafted tokens

    def _served(self, step: DraftStep) -> list[Token]:
        """The tokens to expand that can be: there are slots for what is missing before them."""
        text = self._text
        asked = [text.by_id[id] for id in step.expand]
        if sum(token.slot < 0 for asks in asked for token in asks.path()[1:]) + len(asked) * step.depth > text.free:
            text.forget_nameless()
        planned, served = set[int](), list[Token]()
        for token in asked:
            if token.position + 1 >= self.context:
                continue
            new = {id(t) for t in token.path()[1:] if t.slot < 0} - planned
            if len(planned) + len(new) <= text.free and (token is not text.root or token.out is not None):
                planned |= new
                served.append(token)
        return served

    def _compute(self, wanted: Sequence[Token]) -> None:
        """Compute tokens and what is missing before them, a level at a time: each reads what the one before gave."""
        missing = {id(t): t for token in wanted for t in token.path()[1:] if t.slot < 0}
        while missing:
            level = [t for t in missing.values() if t.parent is not None and id(t.parent) not in missing]
            given = [self._given(token) for token in level]
            slots, sight = [], []
            for token in level:
                self._text.place(token)
                row = self._present & (np.arange(len(self._present)) >= SLOTS)
                row[[t.slot for t in token.path()[1:]]] = True
                slots.append(token.slot)
                sight.append(row)
            out = self._forward(
                [t.token for t in level],
                torch.stack(given),
                np.array([t.position for t in level]),
                np.array(slots),
                np.stack(sight),
            )
            self._note(level, out)
            missing = {key: t for key, t in missing.items() if t.slot < 0}

    def _given(self, token: Token) -> torch.Tensor:
        """g of a drafted token: of the target's rows before it where they are here early, else of the head's own."""
        parent = token.parent
        assert parent is not None
        names = self._text.names(parent.position) if parent.parent is None else (parent.id,)
        for name in names:
            row = self.store.look(name)
            if row is not None:
                return self._joined(row[None])[0]
        if parent.out is None:
            return torch.zeros(self.weights.fc.shape[0], dtype=self.weights.fc.dtype)
        return parent.out

    def _note(self, tokens: Sequence[Token], out: torch.Tensor) -> None:
        """What the layers made of tokens: kept for the next, and ranked."""
        last = normed(out, self.weights.norm, self.weights.eps)
        scores = functional.linear(last, self.weights.head).float()
        paths = None
        if self._ranker.needs_paths:
            paths = [token.drafted() for token in tokens]
        ranks = self._ranker.rank(scores, [token.position + 1 for token in tokens], paths)
        for token, row, ranked in zip(tokens, last if self.weights.norms_out else out, ranks, strict=True):
            token.out, token.ranks = row, ranked

    def _forward(
        self, tokens: Sequence[int], given: torch.Tensor, positions: np.ndarray, slots: np.ndarray, sight: np.ndarray
    ) -> torch.Tensor:
        """What the layers make of tokens [n] and g [n, d], which go to `slots` and see `sight` bool [n, all slots]."""
        weights, at = self.weights, torch.from_numpy(slots.astype(np.int64))
        sight[np.arange(len(slots)), slots] = True
        seen = torch.from_numpy(sight)
        turn = weights.rotary(torch.from_numpy(positions.astype(np.int64)))
        rows = given
        for number, layer in enumerate(weights.layers):
            if number == 0:
                rows, inner = weights.entering(torch.tensor(list(tokens)), given)
            else:
                inner = layer.norm("input_layernorm", rows)
            keys, values = layer.keys(inner, turn)
            self._keys[number][:, at], self._values[number][:, at] = keys, values
            read = layer.attend(layer.queries(inner, turn), self._keys[number], self._values[number], seen)
            rows = layer.fed(rows + read)
        return rows

    def _room(self, positions: int) -> None:
        """See `TapReader._room`."""
        super()._room(positions)
        self._present = np.pad(self._present, (0, self._keys.shape[2] - len(self._present)))
