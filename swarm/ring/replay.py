"""Rows of committed positions, sent again to stages that replace others.

When a ring re-forms, survivors keep their KV. A newcomer is filled by the nearest survivor before it, which kept the
rows that it sent; newcomers in a row are filled together, each passing the replay on to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from swarm.errors import BusyError
from swarm.model.rows import Layout, Rows, no_commits
from swarm.net.wire import encode_tensor
from swarm.ring.frame import Frame
from swarm.ring.session import StageSession

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


def leading_fresh(stages: Sequence[Mapping[str, Any]]) -> int:
    """How many stages, from the first of these on, start with an empty KV."""
    return next((i for i, stage in enumerate(stages) if not stage.get("fresh")), len(stages))


def replay_frames(session: StageSession, last_stage: int) -> Iterator[Frame]:
    """Frames that fill the KV of the next stages, up to number `last_stage`, for the positions that the ring keeps.

    Raises BusyError when this stage did not keep the rows; the ring must then be opened from the start.
    """
    opening = session.opening
    if session.sent is None:
        raise BusyError("busy: the rows of so long a run are not kept for replay; open the ring from the start")
    for seq, first in enumerate(range(0, opening.keep, REPLAY_ROWS)):
        last = min(first + REPLAY_ROWS, opening.keep)
        rows = certain_rows(opening.layout, first, session.sent.tokens(first, last))
        hidden = encode_tensor(session.sent.committed(first, last), opening.wire)
        yield Frame(opening.run, opening.epoch, seq, no_commits(), rows, replay=last_stage, hidden=hidden)
