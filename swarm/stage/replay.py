"""Rows of committed positions, sent again to stages that replace others.

When a ring re-forms, survivors keep their KV. A newcomer is filled by the nearest survivor before it, which kept the
rows that it sent; newcomers in a row are filled together, each passing the replay on to the next.
"""

from __future__ import annotations

from collections.abc import Iterator

from swarm.base.errors import BusyError
from swarm.model.rows import no_commits
from swarm.net.channel.wire import encode_tensor
from swarm.ring.certain_rows import REPLAY_ROWS, certain_rows
from swarm.ring.frame import Frame
from swarm.stage.session import StageSession


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
