"""Opened frames of one stage, as if all were of one session: that is how they are computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from receipts.format.opening import Order
from swarm.base.errors import PeerError
from swarm.model.rows import Layout, check_untrusted
from swarm.ring.frame import Frame

CONTEXT_SLACK = 64
"""A session's context is rounded up by less than this many positions."""


def see_only_written(frames: Sequence[Frame], layout: Layout) -> bool:
    """Whether every committed position that a row sees came in, or was committed, before it."""
    written = np.zeros(layout.context + 1, bool)
    for frame in frames:
        rows = frame.rows
        written[frame.commits.position] = True
        written[rows.position[rows.slot >= layout.scratch]] = True
        if not written[: int(rows.prefix.max())].all():
            return False
    return True


def in_one_layout_untrusted(order: Order, most: int, frames: Sequence[Frame], began: int) -> tuple[Layout, list[Frame]]:
    """Frames of one stage as if all were of one session; the first `began` are of earlier ones, `most` positions long.

    Sessions differ in how many scratch slots they have, and those come first: slots move up by the difference.
    Raises PeerError for frames that fit no session, or reach beyond what the order allows.
    """
    if len({frame.rows.ancestors.shape[1] for frame in frames[began:]}) != 1:
        raise PeerError("frames of one session differ in their scratch slots")
    allowed = min(most, order.prompt_tokens + order.max_tokens + CONTEXT_SLACK)
    if (reach := _reach(frames[began:])) > allowed:
        raise PeerError(f"a position beyond the order's {allowed}")
    context = max(reach, _reach(frames[:began]))
    if context > most:
        raise PeerError(f"a position beyond the model's {most}")
    scratch = 8 * max(frame.rows.ancestors.shape[1] for frame in frames)
    moved = []
    for frame in frames:
        rows, own = frame.rows, 8 * frame.rows.ancestors.shape[1]
        check_untrusted(rows, frame.commits, Layout(own, context))
        wide = np.zeros((len(rows), scratch // 8), np.uint8)
        wide[:, : own // 8] = rows.ancestors
        slot = np.where(rows.slot < own, rows.slot, rows.slot + np.uint32(scratch - own)).astype(rows.slot.dtype)
        moved.append(replace(frame, rows=replace(rows, slot=slot, ancestors=wide)))
    return Layout(scratch, context), moved


def _reach(frames: Sequence[Frame]) -> int:
    """How many positions frames use."""
    arrays = [a for frame in frames for a in (frame.rows.position, frame.rows.prefix, frame.commits.position)]
    return 1 + max((int(array.max()) for array in arrays if len(array)), default=0)
