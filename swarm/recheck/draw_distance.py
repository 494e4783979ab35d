"""How far a token is from being the one drawn: what tells an honest near-tie from a wrong token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from swarm.model.held import Allowed
from swarm.model.sampler import Sampling, filtered, gumbel, pick, shaped
from swarm.model.token_counts import Answered


def token_gaps(
    logits: torch.Tensor,
    positions: Sequence[int],
    tokens: Sequence[int],
    sampling: Sampling,
    contexts: Sequence[Iterable[int]] | None = None,
    allowed: Sequence[Allowed] | None = None,
    answers: Sequence[Answered] | None = None,
) -> tuple[list[int], list[float]]:
    """(token drawn from these logits, gap of the token given), one of each per row.

    logits float32 [n, vocab]; the other arguments as for `sampler.pick`. A gap is the least error of the logits that
    would have made the given token the one drawn: 0 where it is. Sampled or greedy, it is in logits, so that one limit
    serves every temperature.
    """
    best = [picked.token for picked in pick(logits, positions, sampling, contexts, allowed, answers)]
    logits = shaped(logits, positions, sampling, contexts, allowed, answers)
    gaps = [
        0.0 if token == drawn else _gap(row, int(position), token, sampling, answers[index] if answers else None)
        for index, (row, position, token, drawn) in enumerate(zip(logits, positions, tokens, best, strict=True))
    ]
    return best, gaps


def _gap(logits: torch.Tensor, position: int, token: int, sampling: Sampling, answer: Answered | None) -> float:
    dictated = sampling.dictated(position, answer) >= 0
    if not 0 <= token < len(logits) or not math.isfinite(float(logits[token])) or dictated:
        return math.inf  # no such token, one that the constraint does not allow, or not the one that the order gives
    if sampling.greedy:
        return float(logits.max() - logits[token])
    scaled = logits / sampling.temperature
    scores = scaled + torch.from_numpy(gumbel(sampling.seed, position, len(logits))).to(scaled.device)
    kept = torch.isfinite(filtered(scaled[None], sampling)[0])
    slack = _slack(scaled, kept, sampling)
    # Whoever scores higher must lose that much, or be dropped by the filters; the token itself must pass them.
    ahead = (scores - scores[token]).clamp(min=0.0)
    obstacle = torch.where(kept, torch.minimum(ahead, slack), torch.zeros_like(ahead)).max()
    missed = float(slack[token]) if not bool(kept[token]) else 0.0
    return max(float(obstacle), missed) * sampling.temperature


def _slack(scaled: torch.Tensor, kept: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Per token, by how much the scaled logits must be off for the filters to treat it the other way."""
    slack = torch.full_like(scaled, math.inf)
    if not bool(kept.all()):
        least_kept, most_dropped = scaled[kept].min(), scaled[~kept].max()
        slack = torch.where(kept, scaled - most_dropped, least_kept - scaled)
    if sampling.min_p > 0:  # it compares with the best token alone, wherever the next one kept or dropped may lie
        slack = torch.minimum(slack, (scaled - scaled.max() - math.log(sampling.min_p)).abs())
    if sampling.top_p < 1:
        # Errors of e shift the probability above a token by at most 2 p (1 - p) e.
        values, order = scaled.sort(descending=True)
        mass = values.softmax(-1)
        before = torch.zeros_like(mass).scatter(0, order, mass.cumsum(-1) - mass)
        slack = torch.minimum(slack, (before - sampling.top_p).abs() / (2 * sampling.top_p * (1 - sampling.top_p)))
    return slack
