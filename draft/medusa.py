"""Medusa heads as drafters (Cai et al., 2024, "Medusa: Simple LLM Inference Acceleration Framework with Multiple
Decoding Heads"): several heads over the row that the target's own head is given. Where that one says token p + 1 of the
row at p, head i says token p + 2 + i, each by itself: what it proposes for a level does not depend on what was chosen
before.

So a drafted token at position n is continued by head n - p - 1 of the nearest row before it that is here: as a rule the
row of the token before the last certain one, or that of a drafted token which came home early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from draft.base import Child, DraftStep, Expansion
from draft.drafted import Token
from draft.ranker import Ranker
from draft.tapped_text import TappedText
from draft.taps import TapStore
from swarm.model.sampler import Sampling

REACH = 2
"""Rows asked for at the end of a prompt: heads read the newest row alone."""


@dataclass(frozen=True)
class MedusaHead:
    """One head: `blocks` of (matrix [d, d], bias [d] or None), each row + silu(linear(row)), then `matrix` [v, d]."""

    blocks: tuple[tuple[torch.Tensor, torch.Tensor | None], ...]
    matrix: torch.Tensor

    def scores(self, row: torch.Tensor) -> torch.Tensor:
        """float32 [v] of a row [d]."""
        row = row.to(self.matrix.dtype)
        for weight, bias in self.blocks:
            row = row + functional.silu(functional.linear(row, weight, bias))
        return functional.linear(row, self.matrix).float()


class MedusaDrafter:
    """Implements `draft.base.Drafter` and `draft.taps.ReadsTaps` with Medusa heads.

    tap      the one behind the target's last layer and norm
    tokens   the target's ids that scores stand for, ascending; None: all
    context  positions beyond which nothing is proposed
    """

    name = "medusa"
    reach = REACH

    def __init__(self, heads: Sequence[MedusaHead], tap: int, tokens: torch.Tensor | None, context: int) -> None:
        self.heads, self.context = tuple(heads), context
        self.store = TapStore()
        self.layers = (tap,)
        self._tokens = tokens
        self._ranker = Ranker(len(heads[0].matrix), tokens, torch.device("cpu"))
        self._text = TappedText(0, self.store)
        self._known: dict[tuple[int, int], torch.Tensor] = {}
        """Scores of heads by (position of the row or -1 - id of its node, head), of the present root."""

    @property
    def width(self) -> int:
        """Values of what `store` holds of a row."""
        return int(self.heads[0].matrix.shape[1])

    def another(self) -> MedusaDrafter:
        """One for another run, over the same weights."""
        return MedusaDrafter(self.heads, self.layers[0], self._tokens, self.context)

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """See `Drafter.begin`. Nothing is computed: the target's rows come with its passes."""
        self._ranker.begin(prompt, sampling)
        self._text.begin(prompt)
        self._known = {}

    @torch.inference_mode()
    def step(self, step: DraftStep) -> list[Expansion]:
        """See `Drafter.step`. All heads are given, whatever depth is asked for, if it is more than one. Where the row
        before the last certain token was asked for and is on its way, nothing is served yet."""
        text = self._text
        for node in step.committed:
            self._ranker.saw(node.token)
            self._known = {}
        text.apply(step)
        self._ranker.forget_before(text.root.position)
        before = text.root.position - 1
        if before >= 0 and self._certain(before) is None and text.awaits(before):
            return []
        found = []
        for id in step.expand:
            levels = self._levels(text.by_id[id], step.depth)
            found.append(Expansion(id, tuple(level[: step.width] for level in levels)))
        return found

    def _levels(self, token: Token, depth: int) -> list[tuple[Child, ...]]:
        """What heads say of the tokens behind one; nothing where no row near enough is here."""
        nearest = self._nearest(token)
        levels, path = list[tuple[Child, ...]](), token.drafted()
        if nearest is None:
            return levels
        name, row, first = nearest
        for number in range(first, min(len(self.heads), first + depth)):
            position = token.position + 1 + len(levels)
            if position >= self.context:
                break
            if (name, number) not in self._known:
                self._known[name, number] = self.heads[number].scores(row)
            scores = self._known[name, number][None]
            (level,) = self._ranker.rank(scores, [position], [path] if self._ranker.needs_paths else None)
            if not level:
                break
            levels.append(level)
            path = [*path, level[0].token]
        return levels

    def _nearest(self, token: Token) -> tuple[int, torch.Tensor, int] | None:
        """The nearest row before a token that is here: its name among `_known`, itself, and the head that says what
        comes behind the token."""
        above = token.path()[-2::-1]
        for head in range(len(self.heads)):
            position = token.position - 1 - head
            if head < len(above) and above[head].parent is not None:
                row, name = self.store.look(above[head].id), -1 - above[head].id
            else:
                row, name = (self._certain(position), position) if position >= 0 else (None, 0)
            if row is not None:
                return name, row, head
        return None

    def _certain(self, position: int) -> torch.Tensor | None:
        """The row of a certain token, if it is here."""
        rows = (self.store.look(name) for name in self._text.names(position))
        return next((row for row in rows if row is not None), None)
