"""Online calibration: what share of a drafter's proposals turns out right, given their rank and its own belief.

A drafter's confidence is only a number. Observations on the true path say what it is worth: proposals fall into
cells by rank and by confidence (in steps of the log-odds), and each cell estimates its accepted share as a Beta
posterior. The prior of a cell is the drafter's confidence times its overall worth so far (accepted over promised),
so a drafter that is plainly wrong loses credit in all cells after a few tokens, and one that is honest needs no
training. Old observations fade, because text changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from draft.base import Child

_RANKS = (0, 1, 2, 3, 5, 8)
_CELL_PRIOR = 6.0
_WORTH_PRIOR = 1.5
_FADE = 0.995
_MOST = 0.995


@dataclass
class _Cell:
    right: float = 0.0
    seen: float = 0.0


@dataclass
class Calibration:
    """The accepted share of one drafter's proposals. Keep it between runs to start a run well informed.

    trust      how much of the drafter's confidence is believed before anything was observed
    rest_s     how long it was left alone last, because it was never right (`swarm.run.controller`)
    rests_until  on the clock of whoever asks; None: it is not left alone
    """

    trust: float = 0.8
    rest_s: float = 0.0
    rests_until: float | None = None
    _cells: dict[tuple[int, int], _Cell] = field(default_factory=dict)
    _right: dict[int, float] = field(default_factory=dict)
    _promised: dict[int, float] = field(default_factory=dict)
    _coverage: _Cell = field(default_factory=_Cell)

    def share(self, rank: int, confidence: float) -> float:
        """Expected share of proposals of this rank (0 is the first choice) and confidence that are right."""
        group = _group(rank)
        promised = confidence * self._worth(group)
        cell = self._cells.get((group, _step(confidence)))
        if cell is not None:
            promised = (promised * _CELL_PRIOR + cell.right) / (_CELL_PRIOR + cell.seen)
        return min(_MOST, max(0.0, promised))

    def shares(self, children: Sequence[Child]) -> list[float]:
        """`share` for children in rank order."""
        return [self.share(rank, child.confidence) for rank, child in enumerate(children)]

    def observe(self, children: Sequence[Child], truth: int) -> None:
        """The token after a node of the true path is `truth`; the drafter had proposed `children` for it.

        No children means that the drafter had nothing to say, which lowers its coverage and nothing else.
        """
        hit = False
        for rank, child in enumerate(children):
            right = float(child.token == truth)
            hit = hit or bool(right)
            group = _group(rank)
            cell = self._cells.setdefault((group, _step(child.confidence)), _Cell())
            cell.right = cell.right * _FADE + right
            cell.seen = cell.seen * _FADE + 1.0
            self._right[group] = self._right.get(group, 0.0) * _FADE + right
            self._promised[group] = self._promised.get(group, 0.0) * _FADE + child.confidence
        self._coverage.right = self._coverage.right * _FADE + hit
        self._coverage.seen = self._coverage.seen * _FADE + 1.0

    @property
    def coverage(self) -> float:
        """Expected chance that a node of the true path gets its true child from this drafter."""
        return (self._coverage.right + self.trust * 2.0) / (self._coverage.seen + 2.0)

    @property
    def observations(self) -> float:
        """How many nodes of the true path were observed; old ones count less."""
        return self._coverage.seen

    def begin_trial(self, weight: float) -> None:
        """Let what was observed count for no more than `weight` observations: text of another kind may have come."""
        share = min(1.0, weight / max(weight, self._coverage.seen))
        for cell in (self._coverage, *self._cells.values()):
            cell.right, cell.seen = cell.right * share, cell.seen * share
        for sums in (self._right, self._promised):
            for group in sums:
                sums[group] *= share

    def _worth(self, group: int) -> float:
        right = self._right.get(group, 0.0) + _WORTH_PRIOR * self.trust
        return right / (self._promised.get(group, 0.0) + _WORTH_PRIOR)


def _group(rank: int) -> int:
    return sum(1 for first in _RANKS if rank >= first) - 1


def _step(confidence: float) -> int:
    """Confidence in steps of one in log-odds, so that 0.99 and 0.9 are told apart as 0.1 and 0.01 are."""
    bounded = min(0.9995, max(0.0005, confidence))
    return math.floor(math.log(bounded / (1.0 - bounded)))
