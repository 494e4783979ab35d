"""What a tail says of the tokens it drew, held against a recomputation in units of honest rounding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from swarm.model.held import Allowed
from swarm.model.sampler import MAX_MARGIN, Sampling, gumbel, shaped
from swarm.model.token_counts import Answered

LIKELY = 64
LEAST_ERROR = 1e-3
"""Standard deviation of a logit, in logits, that is granted to float32 too."""


def rounding(exact: torch.Tensor, honest: torch.Tensor) -> torch.Tensor:
    """How much rounding disturbs the logits of each row: float32 [n], from two computations [n, vocab] of them.

    Over the likely tokens, and about their mean: what all logits have in common changes nothing.
    """
    if not len(exact):  # a part of a prompt before the last wants no logits
        return torch.zeros(0)
    likely = exact.topk(min(LIKELY, exact.shape[-1]), dim=-1).indices
    return (honest - exact).gather(1, likely).std(-1)


def at_least_usual(disturbed: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Rounding by row, of several frames: each row is taken to be at least as disturbed as half of them are.

    One computation that happens to round a row well says nothing about how well another should.
    """
    rows = torch.cat(list(disturbed)) if disturbed else torch.zeros(0)
    return [frame.clamp(min=float(rows.median())) for frame in disturbed] if len(rows) else list(disturbed)


def scores_of(
    logits: torch.Tensor,
    disturbed: torch.Tensor,
    drawn: Sequence[tuple[int, int, float, float]],
    sampling: Sampling,
    contexts: Sequence[Iterable[int]] | None = None,
    allowed: Sequence[Allowed] | None = None,
    answers: Sequence[Answered] | None = None,
) -> list[tuple[float, ...]]:
    """Per row the errors of logprob and margin, over the standard deviation that errors of the logits give them.

    logits float32 [n, vocab]; disturbed [n] as `rounding` gives it; drawn (position, token, margin, logprob) as
    answered, the token within the vocabulary. The margin is left out where filters decide what it is measured to, and
    of tokens that the order gives.
    """
    logits = shaped(logits, [position for position, *_ in drawn], sampling, contexts, allowed, answers)
    found = []
    for index, row in enumerate(logits):
        position, token, margin, logprob = drawn[index]
        deviation, answer = disturbed[index], answers[index] if answers is not None else None
        unit = max(float(deviation), LEAST_ERROR)
        probability = row.softmax(-1)
        own = float(probability[token])
        # The error of a log-softmax is the token's own minus the mean of all under the distribution.
        spread = ((1 - own) ** 2 + max(0.0, float((probability**2).sum()) - own * own)) ** 0.5
        scores = [(logprob - float(row[token] - row.logsumexp(-1))) / (unit * max(spread, LEAST_ERROR))]
        unfiltered = sampling.greedy or (sampling.top_p == 1 and sampling.top_k == 0 and sampling.min_p == 0)
        if unfiltered and sampling.dictated(position, answer) < 0:
            scores.append((margin - _margin(row, position, token, sampling)) * _scale(sampling) / (unit * 2**0.5))
        found.append(tuple(scores))
    return found


def _scale(sampling: Sampling) -> float:
    return 1.0 if sampling.greedy else sampling.temperature


def _margin(logits: torch.Tensor, position: int, token: int, sampling: Sampling) -> float:
    """By how much this token's score is above the best other one's."""
    scores = logits.clone()
    if not sampling.greedy:
        scores = logits / sampling.temperature + torch.from_numpy(gumbel(sampling.seed, position, len(logits)))
    own = float(scores[token])
    scores[token] = -torch.inf
    return min(MAX_MARGIN, own - float(scores.max()))
