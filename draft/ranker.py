"""From a drafter's logits to ranked children, as the tail of the ring would rank them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from draft.base import Child, children
from swarm.model.sampler import Sampling, divided, filtered, gumbel
from swarm.model.shaped_logits import held_open, shifted

if TYPE_CHECKING:
    from swarm.model.held import Allowed

WIDTH = 16
"""Children kept for each computed token."""


class Ranker:
    """Ranks for one run at a time.

    vocab    how many logits a row has
    tokens   ids that they stand for, int64 [vocab], ascending; None: 0 to vocab - 1
    seen     tokens of the prompt and of what became certain (for the repetition penalty)
    answer   tokens that became certain after the prompt (for penalties by count)
    """

    def __init__(self, vocab: int, tokens: torch.Tensor | None, device: torch.device) -> None:
        self.vocab = vocab
        self.tokens = None if tokens is None else tokens.to(device)
        self.device = device
        self.sampling = Sampling()
        self.seen: set[int] = set()
        self.answer: list[int] = []
        self._noise: dict[int, torch.Tensor] = {}
        self._chosen = None if tokens is None else tokens.cpu().numpy()

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> None:
        self.sampling = sampling
        self.seen = set(prompt)
        self.answer = []
        self._noise = {}

    def saw(self, token: int) -> None:
        """A token of the answer became certain."""
        self.seen.add(token)
        self.answer.append(token)

    @property
    def needs_paths(self) -> bool:
        """Whether scores depend on the tokens before, or on more than `perturb` knows: penalties and biases."""
        shaping = self.sampling.shaping
        return self.sampling.repetition_penalty != 1 or (shaping is not None and shaping.shifts)

    @property
    def sampling_key(self) -> tuple[float, ...]:
        """What `perturb` depends on besides its arguments."""
        s = self.sampling
        return (0.0,) if s.greedy else (s.temperature, s.top_p, s.top_k, s.min_p)

    def forget_before(self, position: int) -> None:
        """Noise for positions up to `position` is not needed any more."""
        for old in [p for p in self._noise if p <= position]:
            del self._noise[old]

    def noise(self, position: int) -> torch.Tensor:
        """The tail's noise for the token at `position`, float32 [vocab]. Zeros when greedy."""
        if position not in self._noise:
            self._noise[position] = torch.from_numpy(self._make_noise(position)).to(self.device)
        return self._noise[position]

    def _make_noise(self, position: int) -> NDArray[np.float32]:
        if self.sampling.greedy:
            return np.zeros(self.vocab, np.float32)
        if self._chosen is None:
            return gumbel(self.sampling.seed, position, self.vocab)
        # The noise of a longer vocabulary begins with that of a shorter one, so the highest id needed is enough.
        noise = gumbel(self.sampling.seed, position, int(self._chosen[-1]) + 1)
        return np.ascontiguousarray(noise[self._chosen])

    def masked(self, logits: torch.Tensor, allowed: Sequence[Allowed | None]) -> torch.Tensor:
        """Logits with -inf for what may not follow the row."""
        held = [(row, choice) for row, choice in enumerate(allowed) if choice is not None]
        if not held:
            return logits
        logits = logits.clone()
        for row, choice in held:
            kept = choice.mask(self.vocab) if self._chosen is None else choice.mask(self._chosen[-1] + 1)[self._chosen]
            if kept.any():  # else the drafter has no word for what may come, and proposes as if free
                logits[row].masked_fill_(torch.from_numpy(~kept).to(logits.device), -math.inf)
        return logits

    def rank(
        self, logits: torch.Tensor, positions: Sequence[int], paths: Sequence[Sequence[int]] | None
    ) -> list[tuple[Child, ...]]:
        """Children for each row of logits [n, vocab], best first.

        positions: of the child, one per row. paths: drafted tokens up to the row, needed if `needs_paths`.
        """
        if paths is not None:
            logits = self._shaped(logits, positions, paths)
        noise = None if self.sampling.greedy else torch.stack([self.noise(p) for p in positions])
        values, ids = self.best(self.perturb(logits, noise))
        rows = zip(ids.tolist(), values.tolist(), strict=True)
        return [children(*row) for row in rows]

    def perturb(self, logits: torch.Tensor, noise: torch.Tensor | None, static: bool | None = None) -> torch.Tensor:
        """What the tail takes the argmax of: logits over the temperature, filtered, plus noise; all [n, vocab].
        `static` as in `sampler.filtered`."""
        if noise is None:
            return logits
        return filtered(divided(logits, self.sampling.temperature), self.sampling, static) + noise

    def best(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Confidences float32 [n, w] and token ids int64 [n, w], best first.

        The confidence is the softmax of the perturbed scores: near 1 when the first is far ahead, so that a drafter
        that is a little off would still choose it.
        """
        values, best = torch.softmax(scores, -1).topk(min(WIDTH, scores.shape[-1]), dim=-1)
        return values, best if self.tokens is None else self.tokens[best]

    def _shaped(self, logits: torch.Tensor, positions: Sequence[int], paths: Sequence[Sequence[int]]) -> torch.Tensor:
        """As the tail does it, in its order (`swarm.model.sampler.shaped`)."""
        if self.sampling.repetition_penalty != 1:
            logits = self._penalised(logits, paths)
        if (shaping := self.sampling.shaping) is not None:
            answers = [[*self.answer, *path] for path in paths] if shaping.counts else None
            logits = shifted(logits, answers, shaping, self.tokens)
            logits = held_open(logits, positions, shaping, self.tokens)
        return logits

    def _penalised(self, logits: torch.Tensor, paths: Sequence[Sequence[int]]) -> torch.Tensor:
        logits, penalty = logits.clone(), self.sampling.repetition_penalty
        for row, path in zip(logits, paths, strict=True):
            at = torch.tensor(sorted(self.seen.union(path)), device=self.device)
            if self.tokens is not None:
                place = torch.searchsorted(self.tokens, at).clamp(max=len(self.tokens) - 1)
                at = place[self.tokens[place] == at]
            values = row[at]
            row[at] = torch.where(values > 0, values / penalty, values * penalty)
        return logits
