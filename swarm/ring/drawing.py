"""Drawing the tokens of a frame, with what came before each row where sampling looks at it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from swarm.base.errors import ModelError
from swarm.model.held import Allowed, Matcher
from swarm.model.rows import Rows
from swarm.model.sampler import Picked, Sampling, pick
from swarm.model.token_counts import Answered
from swarm.ring.kept_rows import SlotTokens

MASKING_S = 2.0
"""Longest that the masks of one frame may take, in seconds. Honest ones take 0.05 ms a row; what a constraint may take
for one row is bounded in counts, and this ends a run that would keep a node at those bounds for every row."""


def needs_tokens(sampling: Sampling) -> bool:
    """Whether whoever draws must know the tokens themselves: a penalty or a constraint looks at them."""
    return needed_from(sampling) is not None


def needed_from(sampling: Sampling) -> int | None:
    """The first position whose token whoever draws must know; None: no token matters."""
    if sampling.repetition_penalty != 1.0:
        return 0
    begins = [sampling.constraint.after] if sampling.constraint is not None else []
    if sampling.shaping is not None and sampling.shaping.looks_back:
        begins.append(sampling.shaping.after)
    return min(begins, default=None)


@dataclass(frozen=True)
class Drawing:
    """How a run's tokens are drawn. `tokens` and `held_to` are there where the sampling needs them."""

    sampling: Sampling
    tokens: SlotTokens | None = None
    held_to: Matcher | None = None

    def pick(self, logits: torch.Tensor, positions: Sequence[int], rows: Rows) -> list[Picked]:
        """The token after each wanted row; `positions` are those of the tokens drawn. Raises ModelError."""
        return pick(logits, positions, self.sampling, self.contexts(rows), self.allowed(rows), self.answers(rows))

    def contexts(self, rows: Rows) -> list[NDArray[np.int64]] | None:
        """All tokens before each wanted row's next one; None where no penalty looks at them."""
        if self.sampling.repetition_penalty == 1.0:
            return None
        assert self.tokens is not None
        return self.tokens.contexts(rows)

    def answers(self, rows: Rows) -> Sequence[Answered] | None:
        """The answer's tokens before each wanted row's next one, counted where that is all that is asked of them; None
        where nothing looks at them."""
        shaping = self.sampling.shaping
        if shaping is None or not shaping.looks_back:
            return None
        assert self.tokens is not None
        if shaping.thought is None:
            return self.tokens.counts(rows, shaping.after)
        return self.tokens.answers(rows, shaping.after)

    def allowed(self, rows: Rows) -> list[Allowed] | None:
        """What the constraint allows after each wanted row; None without one. Raises ModelError."""
        if self.sampling.constraint is None:
            return None
        assert self.tokens is not None
        if self.held_to is None:
            raise ModelError("expected the run's constraint to be compiled before its first token is drawn")
        found = []
        ends = time.monotonic() + MASKING_S
        for answer in self.tokens.answers(rows, self.held_to.begins):
            found.append(self.held_to.after(answer))
            if time.monotonic() > ends:
                raise ModelError(f"this run's constraint takes more than {MASKING_S:g} s for the rows of one frame")
        return found
