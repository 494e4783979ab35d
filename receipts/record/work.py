"""What a party computed in one epoch: the sums that its account of it gives."""

from __future__ import annotations

from dataclasses import dataclass

from receipts.format.closing import Span


@dataclass
class Work:
    """Frames and rows computed, over which positions, in how many microseconds. `span` is None before the first."""

    frames: int = 0
    rows: int = 0
    compute_us: int = 0
    span: Span | None = None

    def add(self, rows: int, first: int, last: int, compute_us: int) -> None:
        """One frame: `rows` rows at positions [first, last), in `compute_us` microseconds."""
        self.frames += 1
        self.rows += rows
        self.compute_us += compute_us
        before = self.span or Span(first, last)
        self.span = Span(min(before.first, first), max(before.last, last))
