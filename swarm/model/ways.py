"""Which way of holding weights is faster here: one layer measured both ways."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from swarm.model.block import load_block
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.probe import median_ms

ROWS = (1, 8)
"""Rows of the passes that decide: a token alone, and one with drafts or company."""
_MARGIN = 1.1


@dataclass(frozen=True)
class Ways:
    """Milliseconds of one layer for 1 and 8 rows, its weights as stored and expanded."""

    stored: tuple[float, float]
    expanded: tuple[float, float]

    @property
    def better(self) -> str:
        """ "auto" (as stored) or "expanded". Expanded must be clearly faster, by a tenth over both counts of rows,
        since it takes up to four times the memory."""
        gain = sum(a / b for a, b in zip(self.stored, self.expanded, strict=True)) / len(ROWS)
        return "expanded" if gain > _MARGIN else "auto"


def measure_ways(checkpoint: Checkpoint, part: tuple[int, int], dtype: torch.dtype) -> Ways:
    """Load layers [first, last), one unless it cannot be cut off, twice, one after the other, and time them on the CPU.
    Takes about as long as loading them twice.

    Raises ModelError.
    """
    found = []
    for weights in ("auto", "expanded"):
        block = load_block(checkpoint, *part, torch.device("cpu"), dtype, weights=weights)
        found.append((median_ms(block, ROWS[0], 7), median_ms(block, ROWS[1], 7)))
    return Ways(*found)
