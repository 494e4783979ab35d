"""Rows of committed positions, as they are sent again when a ring re-forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from swarm.model.rows import Layout, Rows

REPLAY_ROWS = 128


def certain_rows(layout: Layout, first: int, tokens: Sequence[int], want_last: bool = False) -> Rows:
    """Rows of the committed positions first, first + 1, ...; each sees what comes before it."""
    n = len(tokens)
    position = np.arange(first, first + n, dtype=np.uint32)
    want = np.zeros(n, bool)
    want[-1] = want_last
    return Rows(
        slot=position + np.uint32(layout.scratch),
        position=position,
        prefix=position + np.uint32(1),
        ancestors=np.zeros((n, layout.scratch // 8), np.uint8),
        token=np.asarray(tokens, np.int32),
        want=want,
    )


def leading_fresh(stages: Sequence[Mapping[str, object]]) -> int:
    """How many stages, from the first of these on, start with an empty KV."""
    return next((i for i, stage in enumerate(stages) if not stage.get("fresh")), len(stages))
