"""How far a run's tokens are from those that a recomputation draws, as one score.

In the spirit of Token-DiFR (Karvonen et al., 2025): whoever recomputes a run with other kernels or in another precision
draws most of its tokens again, since the noise of sampling (Gumbel, by seed and position) is the order's own; where
not, the token that was drawn lies close behind. How close tells honest rounding from another model, seed, or precision.
The mean of many small distances sees what no single token shows, so it can call for doubt where each is a near-tie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from receipts.check.recompute import MILLION, Limit
from receipts.check.replay import Replayed, Replayer
from receipts.check.verdict import Claim, Standing
from receipts.format.opening import Order

CLIP = 20.0
"""A token counts this much at most: one that no rounding explains must not hide what the others say."""
HONEST = 0.03
"""Up to here scores of honest runs lie: at most 0.016 over the 4 measured in docs/receipts.md.

int8 weights gave 0.030 and 0.038 there, so they may lie on either side.
"""
OTHER = 0.3
"""From here on no honest run, int8 weights or slightly other temperature was seen: those gave up to 0.055.

The least beyond was 0.61: temperature 1.0 for 0.8.
"""
FEW = 32


@dataclass(frozen=True)
class TokenStats:
    """`score`: mean distance, clipped, in units of the dtype's gate for near-ties; `differing` of `tokens` differ."""

    score: float
    differing: int
    tokens: int

    @property
    def meaning(self) -> str:
        """The score in words."""
        if self.score <= HONEST:
            text = "as honest rounding leaves it (int8 weights came close to that)"
        elif self.score < OTHER:
            text = "more than honest runs had; not told apart from int8 weights or a slightly other temperature"
        else:
            text = "another model, precision, seed or sampler drew these tokens"
        return text + (f" ({self.tokens} tokens say little)" if self.tokens < FEW else "")


def token_stats(gaps: Sequence[float], limit: Limit) -> TokenStats:
    """`gaps` in logits as in `Replayed`: 0 where the token is the one drawn again. No token: score 0."""
    unit = max(1, limit.tie_ppm) / MILLION
    parts = [min(gap / unit, CLIP) if math.isfinite(gap) else CLIP for gap in gaps]
    return TokenStats(sum(parts) / max(1, len(parts)), sum(gap != 0 for gap in gaps), len(parts))


def stats_claim(stats: TokenStats) -> Claim:
    """One line of the report. Proven is the score; what it means is for the reader to weigh."""
    text = f"score {stats.score:.3f}, {stats.differing}/{stats.tokens} tokens differ: {stats.meaning}"
    figures = {"score": round(stats.score, 6), "differing": stats.differing, "tokens": stats.tokens}
    return Claim(Standing.PROVEN, "token statistics", text, figures=figures)


class Scored:
    """A replayer that also leaves `claims`, whatever is concluded from it: a refused run has a score, too."""

    def __init__(self, replayer: Replayer, limit: Limit) -> None:
        self._replayer, self._limit = replayer, limit
        self.claims: list[Claim] = []

    def replay(self, order: Order, prompt: Sequence[int], tokens: Sequence[int]) -> Replayed:
        """As the replayer within."""
        found = self._replayer.replay(order, prompt, tokens)
        self.claims = [stats_claim(token_stats(found.gaps, self._limit))]
        return found
