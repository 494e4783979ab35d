"""From a drafter's logits to ranked children, as the tail of the ring would rank them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from draft.base import Child, children
from swarm.model.sampler import Sampling, divided, filtered, gumbel, penalised
from swarm.model.shaped_logits import held_open, places, shifted
from swarm.model.token_counts import TokenCounts

if TYPE_CHECKING:
    from swarm.model.held import Allowed

WIDTH = 16
"""Children kept for each computed token."""


class Ranker:
    """Ranks for one run at a time.

    vocab    how many logits a row has
    tokens   ids that they stand for, int64 [vocab], ascending; None: 0 to vocab - 1
    """

    def __init__(self, vocab: int, tokens: torch.Tensor | None, device: torch.device) -> None:
        self.vocab = vocab
        self.tokens = None if tokens is None else tokens.to(device)
        self.device = device
        self.sampling = Sampling()
        self._certain = _Certain()
        self._noise: dict[int, torch.Tensor] = {}
        self._here = None if tokens is None else tokens.cpu()  # what shapes logits runs on the CPU
        self._chosen = None if self._here is None else self._here.numpy()

    def begin(self, prompt: Sequence[int], sampling: Sampling) -> None:
        self.sampling = sampling
        self._certain = _Certain(prompt)
        self._noise = {}

    def saw(self, token: int) -> None:
        """A token of the answer became certain."""
        self._certain.saw(token)

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
        certain = self._certain
        if self.sampling.repetition_penalty != 1:
            known = certain.context.ids
            seen = [np.concatenate((known, np.asarray(path, np.int64))) for path in paths]
            contexts = [places(self.vocab, ids, self._here)[0] for ids in seen]
            logits = penalised(logits, contexts, self.sampling.repetition_penalty)
        if (shaping := self.sampling.shaping) is not None:
            answers = [certain.answer.plus(np.asarray(path, np.int64)) for path in paths] if shaping.counts else None
            logits = shifted(logits, answers, shaping, self._here)
            logits = held_open(logits, positions, shaping, self._here)
        return logits


class _Certain:
    """The tokens that a run's penalties look at, counted on where they are asked for instead of anew for each row."""

    def __init__(self, prompt: Sequence[int] = ()) -> None:
        self._prompt = prompt
        self._context: TokenCounts | None = None
        self._answer = TokenCounts()
        self._new: list[int] = []

    def saw(self, token: int) -> None:
        """A token of the answer became certain."""
        self._new.append(token)

    @property
    def context(self) -> TokenCounts:
        """Tokens of the prompt and the answer (for the repetition penalty)."""
        self._count()
        assert self._context is not None
        return self._context

    @property
    def answer(self) -> TokenCounts:
        """Tokens of the answer (for penalties by count)."""
        self._count()
        return self._answer

    def _count(self) -> None:
        if self._context is None:
            self._context = TokenCounts.of(np.array(self._prompt, np.int64))
        if self._new:
            new = np.array(self._new, np.int64)
            self._context, self._answer, self._new = self._context.plus(new), self._answer.plus(new), []
