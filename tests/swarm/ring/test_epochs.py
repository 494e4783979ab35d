"""What comes late, from a ring that was given up, changes nothing at either end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from swarm.base.errors import PeerError
from swarm.model.rows import Layout, no_commits
from swarm.model.sampler import Sampling
from swarm.net.channel.message import Message
from swarm.ring.certain_rows import certain_rows
from swarm.ring.connect import StageConnector
from swarm.ring.frame import Answer, Frame
from swarm.ring.opening import OpenRun, RingSignal, StagePlan
from swarm.ring.words import ClosedHome
from swarm.run.ring_client import RingLink
from swarm.stage.session import StageSession

RUN = bytes(16)


def opening(epoch: int) -> OpenRun:
    stages = (StagePlan(b"a" * 32, (), 0, 3), StagePlan(b"b" * 32, (), 3, 6))
    return OpenRun(RUN, epoch, b"r" * 32, "m", "float32", Layout(8, 64), Sampling(), stages)


def answer(epoch: int) -> Answer:
    none: Any = np.zeros(0, np.int32)
    return Answer(RUN, epoch, 0, none, none, none, none, none, none)


@pytest.mark.parametrize("epoch", [0, 2])
async def test_an_answer_of_another_epoch_is_ignored(epoch: int) -> None:
    class Nobody(StageConnector):
        async def connect(self, stage: StagePlan) -> Any:
            raise AssertionError("nobody is dialled")

    link = RingLink(Nobody(), opening(1))
    link.take_answer(answer(epoch), Message("ring.answer", {}))
    for do in ("lost", "leave", "opened"):
        link.take_word(RingSignal(do, RUN, epoch, stage=1, reason="late"))
    link.take_end(ClosedHome(RUN, epoch, None))
    assert not link.answers and not link.losses and not link.wake.is_set()
    link.take_answer(answer(1), Message("ring.answer", {}))
    assert len(link.answers) == 1 and link.wake.is_set()


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_frame_of_another_epoch_is_ignored(epoch: int) -> None:
    session = StageSession(opening(1), None, None, None, 0.0)  # type: ignore[arg-type]
    rows = certain_rows(Layout(8, 64), 0, [1, 2])
    assert not session.accept_untrusted(Frame(RUN, epoch, 7, no_commits(), rows))
    assert session.last_seq == -1
    assert session.accept_untrusted(Frame(RUN, 1, 0, no_commits(), rows))


def test_frames_follow_number_zero_too() -> None:
    """The first frame of an epoch may have number 0: the next is 1, and no replay comes behind it."""
    session = StageSession(opening(1), None, None, None, 0.0)  # type: ignore[arg-type]
    rows = certain_rows(Layout(8, 64), 0, [1, 2])
    assert session.accept_untrusted(Frame(RUN, 1, 0, no_commits(), rows))
    with pytest.raises(PeerError, match="expected frame 1, found 2"):
        session.accept_untrusted(Frame(RUN, 1, 2, no_commits(), rows))
    with pytest.raises(PeerError, match="expected replayed frame 0, found 0"):
        session.accept_untrusted(Frame(RUN, 1, 0, no_commits(), rows, replay=1))
    assert session.accept_untrusted(Frame(RUN, 1, 1, no_commits(), rows)) and session.last_seq == 1


def test_a_released_session_holds_nothing() -> None:
    class Memory:
        closed = False

        def close(self) -> None:
            self.closed = True

    memory, heads = Memory(), Memory()
    session = StageSession(opening(1), None, memory, None, 0.0)  # type: ignore[arg-type]
    session.mtp, session.held_to, session.sent = heads, object(), object()  # type: ignore[assignment]
    session.release()
    assert session.closed is True and memory.closed and heads.closed
    assert session.mtp is None and session.held_to is None and session.sent is None and not session.queue
