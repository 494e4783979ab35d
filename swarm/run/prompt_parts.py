"""How many tokens of a prompt travel in one frame: small enough that stages compute different parts at once."""

from __future__ import annotations

from swarm.planner.costs import Costs

LEAST_ROWS = 32
"""Kernels for many rows take at least so many at once, and each frame is hashed, signed for and answered."""
MOST_ROWS = 256
"""Other sessions wait behind a frame of a prompt."""
FRAME_MS = 2.0
"""What a frame costs a stage beside its rows: reading, scheduling, sending (1 to 2 ms on the machines measured)."""


def prompt_rows(tokens: int, stages: int, costs: Costs) -> int:
    """Rows of each frame of a prompt of `tokens` tokens over a ring of `stages` stages, from LEAST_ROWS to MOST_ROWS.

    The parts follow each other through the ring: the time of one stage for all of them passes, and then what each
    further stage needs for the largest (the makespan of a permutation flow shop whose machines are alike; the slowest
    stage stands for all). A part costs its pass of one row and what further rows add (`costs`). So parts are large for
    one stage and where a further row costs nothing (a GPU), small where rows are dear and stages many. Of sizes that
    take equally long it is the largest.
    """

    def whole_ms(rows: int) -> float:
        parts = -(-tokens // rows)
        largest = FRAME_MS + costs.frame_ms + (min(rows, tokens) - 1) * costs.frame_row_ms
        return parts * (FRAME_MS + costs.frame_ms - costs.frame_row_ms) + (stages - 1) * largest

    return min(range(MOST_ROWS, LEAST_ROWS - 1, -1), key=whole_ms)
