"""Block drafters: DFlash (arXiv 2602.06036) and DSpark, which read hidden rows of the target and guess several tokens
in one pass.

Each layer's keys and values of the text before are made of the target's rows (several layers of it, joined); the rows
that are computed are a block: the tokens known behind that text, then masks, all of which see each other. DSpark adds
to the scores of each place what follows from the token before it, one after the other. Laid out as `speculators`
does, or as DFlash's authors do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from draft.base import Child, DraftStep, Expansion
from draft.drafted import Token
from draft.tap_reader import BATCH, TappedWeights, TapReader
from draft.tapped_layer import normed
from swarm.model.sampler import Sampling


@dataclass(frozen=True)
class Markov:
    """DSpark's sequential head, one of three kinds: by the token before ("vanilla"), gated by the place's row
    ("gated"), or with a state along the block ("rnn")."""

    kind: str
    first: torch.Tensor
    second: torch.Tensor
    inner: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    def start(self) -> torch.Tensor:
        """The state before a block."""
        return torch.zeros(self.first.shape[1], dtype=self.first.dtype)

    def follow(self, state: torch.Tensor, token: int, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is added to the scores of a place with row [d] after `token`, float32 [v], and the state after it."""
        before = self.first[token]
        if self.kind == "gated":
            assert self.inner is not None
            before = torch.sigmoid(functional.linear(torch.cat([row, before]), self.inner, self.bias)) * before
        elif self.kind == "rnn":
            assert self.inner is not None
            gate, new, shown = functional.linear(torch.cat([state, before, row]), self.inner, self.bias).chunk(3)
            gate = torch.sigmoid(gate)
            state, before = gate * state + (1.0 - gate) * torch.tanh(new), torch.tanh(shown)
        return functional.linear(before, self.second).float(), state


@dataclass(frozen=True)
class Window:
    """What rows of a layer see of the text: `size` tokens before the block. causal: of the block what comes before."""

    size: int
    causal: bool


@dataclass(frozen=True, kw_only=True)
class BlockWeights(TappedWeights):
    """A block drafter, in memory.

    joined_norm  of what `fc` gives
    windows  per layer how far back its rows see; None: everything
    size     of a block; mask: the token id of what is to be guessed
    shifted  whether a place guesses the token after it (DSpark), or its own (DFlash)
    """

    joined_norm: torch.Tensor
    windows: tuple[Window | None, ...]
    size: int
    mask: int
    shifted: bool
    markov: Markov | None = None


class BlockDrafter(TapReader[BlockWeights]):
    """Implements `draft.base.Drafter` and `draft.taps.ReadsTaps` with a block drafter."""

    def __init__(self, weights: BlockWeights, context: int) -> None:
        super().__init__(weights, context, 0)
        self.name = "dspark" if weights.markov is not None else "dflash"

    def another(self) -> BlockDrafter:
        """One for another run, over the same weights."""
        return BlockDrafter(self.weights, self.context)

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """See `TapReader.begin`."""
        super().begin(prompt, sampling)
        self._text.pending = [p for p in self._text.pending if p >= len(self._true) or not self._true[p]]

    @torch.inference_mode()
    def step(self, step: DraftStep) -> list[Expansion]:
        """See `Drafter.step`. All levels of a block are given, whatever depth is asked for: they cost one pass. Where
        rows of the target that were asked for are on their way, nothing is served yet."""
        text = self._text
        self._follow(step, 0)
        self._learn()
        before = text.root.position - 1
        if before >= 0 and not self._true[before] and text.awaits(before):
            return []
        if not self._true[: before + 2].any():
            return []  # nothing of the text is known: a block by itself is a guess at nothing
        found = []
        for id in step.expand:
            token = text.by_id[id]
            levels = self._block(token)
            if levels:
                found.append(Expansion(id, tuple(level[: step.width] for level in levels)))
        return found

    def _learn(self) -> None:
        """Keys and values of the certain text whose rows of the target have come."""
        came = self._text.came(0, len(self._text.tokens))
        for start in range(0, len(came), BATCH):
            part = came[start : start + BATCH]
            positions = torch.tensor([position for position, _ in part])
            for number, (keys, values) in enumerate(self._made(torch.stack([row for _, row in part]), positions)):
                self._keys[number][:, positions], self._values[number][:, positions] = keys, values
            self._true[positions.numpy()] = True

    def _made(self, rows: torch.Tensor, positions: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per layer keys and values of the target's rows [n, width], as they lie in `store`, at positions [n]."""
        weights = self.weights
        joined = normed(self._joined(rows), weights.joined_norm, weights.eps)
        turn = weights.rotary(positions)
        return [layer.keys(joined, turn) for layer in weights.layers]

    def _block(self, token: Token) -> list[tuple[Child, ...]]:
        """Levels below a token; none where its block is full of what is known."""
        weights, path = self.weights, token.path()
        if len(path) > 1 and self._true[path[0].position]:
            path = path[1:]
        early = []
        for before in path[:-1]:  # rows of drafted tokens may be here before the tail has said that they are right
            names = (before.id,) if before.parent is not None else self._text.names(before.position)
            row = next((row for name in names if (row := self.store.look(name)) is not None), None)
            if row is None:
                break
            early.append(row)
        known = [t.token for t in path[len(early) :]]
        start = path[len(early)].position
        if len(known) > weights.size - (not weights.shifted):
            return []
        rows = self._computed(torch.stack(early) if early else None, known, start)
        scores = functional.linear(rows, weights.head).float()
        return self._ranked(token, known, rows, scores)

    def _computed(self, early: torch.Tensor | None, known: Sequence[int], start: int) -> torch.Tensor:
        """The rows [size, d] of a block from position `start`, behind the certain text and `early` rows after it."""
        weights = self.weights
        count = 0 if early is None else len(early)
        positions = torch.arange(start, start + weights.size)
        certain = torch.from_numpy(np.flatnonzero(self._true[: start - count]))
        before = torch.cat([certain, torch.arange(start - count, start)])
        ids = torch.tensor([*known, *[weights.mask] * (weights.size - len(known))])
        extra = [] if early is None else self._made(early, torch.arange(start - count, start))
        turn, rows = weights.rotary(positions), weights.table[ids].to(weights.fc.dtype)
        places = torch.cat([before, positions])
        for number, layer in enumerate(weights.layers):
            inner = layer.norm("input_layernorm", rows)
            own = layer.keys(inner, turn)
            keys, values = (
                torch.cat([kept[number][:, certain], *([extra[number][i]] if extra else []), own[i]], 1)
                for i, kept in enumerate((self._keys, self._values))
            )
            seen = torch.ones(len(positions), len(places), dtype=torch.bool)
            if (window := weights.windows[number]) is not None:
                seen &= places >= start - window.size
                if window.causal:
                    seen[:, len(before) :] = positions[None] <= positions[:, None]
            rows = rows + layer.attend(layer.queries(inner, turn), keys, values, seen)
            rows = layer.fed(rows)
        return normed(rows, weights.norm, weights.eps)

    def _ranked(
        self, token: Token, known: Sequence[int], rows: torch.Tensor, scores: torch.Tensor
    ) -> list[tuple[Child, ...]]:
        """A level for each place behind `token`, the last of `known`, each behind the first choices before it."""
        weights, levels = self.weights, list[tuple[Child, ...]]()
        markov = weights.markov
        state = markov.start() if markov is not None else torch.empty(0)
        path = token.drafted()
        first = len(known) - weights.shifted
        if markov is not None:  # places whose tokens are known move the state on
            for place in range(first):
                state = markov.follow(state, known[max(0, place - (not weights.shifted))], rows[place])[1]
        latest, position = token.token, token.position + 1
        for place in range(first, weights.size):
            if position + len(levels) >= self.context:
                break
            found = scores[place]
            if markov is not None:
                more, state = markov.follow(state, latest, rows[place])
                found = found + more
            ranked = self._ranker.rank(
                found[None], [position + len(levels)], [path] if self._ranker.needs_paths else None
            )
            levels.append(ranked[0])
            if not ranked[0]:
                break
            latest = ranked[0][0].token
            path = [*path, latest]
        return levels
