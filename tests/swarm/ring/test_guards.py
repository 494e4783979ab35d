"""Bounds at their very edge: each test is named after what the check that it holds keeps out."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from swarm.base.errors import BusyError, PeerError
from swarm.model.rows import MAX_ROWS, Commits, Layout, Rows, check_untrusted, no_commits
from swarm.model.sampler import Sampling
from swarm.planner.costs import Costs
from swarm.ring.certain_rows import certain_rows
from swarm.ring.frame import (
    ANSWER,
    Answer,
    Frame,
    encode_answer,
    encode_commits,
    encode_frame,
    filled,
    parse_answer_untrusted,
    parse_commits_untrusted,
    parse_frame_untrusted,
)
from swarm.ring.opening import OpenRun, StagePlan
from swarm.run.controller import Controller, Setting
from swarm.run.speculation import Speculation, StopRule
from swarm.stage.admission import StageLimits, check_room
from swarm.stage.session import Arrived, StageSession
from swarm.stage.sessions import Register

LAYOUT = Layout(8, 64)
RUN = bytes(16)


def frame(seq: int, first: int = 0, count: int = 2, replay: int = -1) -> Frame:
    rows = certain_rows(LAYOUT, first, list(range(1, count + 1)))
    return Frame(RUN, 0, seq, no_commits(), rows, replay=replay)


def session(keep: int = 0) -> StageSession:
    stages = (StagePlan(b"a" * 32, (), 0, 3), StagePlan(b"b" * 32, (), 3, 6))
    opening = OpenRun(RUN, 0, b"r" * 32, "m", "float32", LAYOUT, Sampling(), stages, keep=keep)
    return StageSession(opening, None, None, None, 0.0)  # type: ignore[arg-type]


def commits(slot: int, position: int) -> Commits:
    return Commits(np.array([slot], np.uint32), np.array([position], np.uint32))


def drafted(slots: list[int], position: int, scratch: int = LAYOUT.scratch) -> Rows:
    n = len(slots)
    bits = np.zeros((n, scratch // 8), np.uint8)
    for row, slot in enumerate(slots):
        bits[row, slot >> 3] = 1 << (slot & 7)
    same: Any = np.full(n, position, np.uint32)
    return Rows(np.array(slots, np.uint32), same, same, bits, np.ones(n, np.int32), np.ones(n, np.bool_))


def test_bytes_after_the_end_of_a_frame() -> None:
    message = encode_frame(frame(0))
    parse_frame_untrusted(message)
    with pytest.raises(PeerError, match="found 1 bytes after the end of a frame"):
        parse_frame_untrusted(replace(message, body=bytes(message.body) + b"\0"))
    none: Any = np.zeros(0, np.int32)
    answer = encode_answer(Answer(RUN, 0, 0, none, none, none, none, none.reshape(0, 0), none.reshape(0, 0)))
    parse_answer_untrusted(answer)
    with pytest.raises(PeerError, match="after the end"):
        parse_answer_untrusted(replace(answer, body=b"\0"))


def test_a_commit_of_the_slot_that_is_scratch_itself() -> None:
    rows = certain_rows(LAYOUT, 0, [1])
    check_untrusted(rows, commits(LAYOUT.scratch - 1, 0), LAYOUT)
    with pytest.raises(PeerError, match="a commit reaches outside"):
        check_untrusted(rows, commits(LAYOUT.scratch, 0), LAYOUT)
    parse_commits_untrusted(encode_commits(commits(LAYOUT.scratch - 1, 0)), LAYOUT)
    with pytest.raises(PeerError, match="a commit reaches outside"):
        parse_commits_untrusted(encode_commits(commits(LAYOUT.scratch, 0)), LAYOUT)


def test_a_position_equal_to_the_context() -> None:
    check_untrusted(drafted([0], LAYOUT.context - 1), commits(0, LAYOUT.context - 1), LAYOUT)
    with pytest.raises(PeerError, match="position beyond the session's 64"):
        check_untrusted(drafted([0], LAYOUT.context), no_commits(), LAYOUT)
    with pytest.raises(PeerError, match="a commit reaches outside"):
        check_untrusted(drafted([0], 1), commits(0, LAYOUT.context), LAYOUT)
    with pytest.raises(PeerError, match="a commit reaches outside"):
        parse_commits_untrusted(encode_commits(commits(0, LAYOUT.context)), LAYOUT)


def test_two_rows_that_write_one_slot() -> None:
    check_untrusted(drafted([0, 1], 3), no_commits(), LAYOUT)
    with pytest.raises(PeerError, match="two rows of a frame write to one slot"):
        check_untrusted(drafted([1, 1], 3), no_commits(), LAYOUT)


def test_a_gap_between_filled_positions() -> None:
    assert filled(0, frame(0, 0, 3), LAYOUT.scratch) == 3
    assert filled(3, frame(0, 4, 2), LAYOUT.scratch) == 3
    assert filled(3, replace(frame(0, 4, 2), commits=commits(0, 3)), LAYOUT.scratch) == 6
    assert filled(3, replace(frame(0, 3, 1), commits=commits(0, 5)), LAYOUT.scratch) == 4


def test_a_frame_that_is_not_the_next_one() -> None:
    taking = session()
    assert taking.accept_untrusted(frame(7))
    for wrong in (7, 9, 6):
        with pytest.raises(PeerError, match=f"expected frame 8, found {wrong}"):
            taking.accept_untrusted(frame(wrong))
    assert taking.accept_untrusted(frame(8))
    taking.refuse()
    assert not taking.accept_untrusted(frame(9))


def test_a_replay_with_a_hole_or_after_the_run_went_on() -> None:
    taking = session(keep=8)
    assert taking.accept_untrusted(frame(0, replay=0))
    with pytest.raises(PeerError, match="expected replayed frame 1, found 2"):
        taking.accept_untrusted(frame(2, replay=0))
    assert taking.accept_untrusted(frame(5))
    with pytest.raises(PeerError, match="expected replayed frame"):
        taking.accept_untrusted(frame(1, replay=0))


def test_more_rows_or_frames_waiting_than_a_stage_lets_wait() -> None:
    limits = StageLimits(queue_frames=3, queue_rows=10)
    taking = session()
    check_room(taking, limits, frame(0, count=11))  # one always may
    taking.queue.append(Arrived(frame(0, count=6), 0.0))
    check_room(taking, limits, frame(1, count=4))
    with pytest.raises(BusyError, match="1 frames of 6 rows wait here and 5 rows more came"):
        check_room(taking, limits, frame(1, count=5))
    taking.queue.extend(Arrived(frame(seq, count=1), 0.0) for seq in (1, 2))
    with pytest.raises(BusyError, match="at most 3 frames"):
        check_room(taking, limits, frame(3, count=1))
    check_room(session(keep=64), limits, frame(0, count=20, replay=1))


def test_a_kept_session_while_the_node_drains() -> None:
    for draining, left in ((False, 1), (True, 0)):
        sessions, kept = Register(), session()
        kept.kept_until = 100.0
        kept.kv = _Closable()  # type: ignore[assignment]
        sessions.enter(kept)
        sessions.free_outlived(50.0, 45.0, draining)
        assert len(sessions) == left


class _Closable:
    def close(self) -> None:
        """Nothing is held."""


def test_rows_in_flight_that_are_never_lowered() -> None:
    core = Speculation(list(range(1, 40)), LAYOUT, StopRule(8), Controller(Costs(), Setting("plain")), chunk=10)
    sent = []
    while (planned := core.next_frame(0.0)) is not None:
        sent.append(planned)
    assert core.rows_in_flight == sum(len(planned.rows) for planned in sent) == 39
    left = 39
    for planned in sent:
        left -= len(planned.rows)
        core.on_answer(planned.seq, [5] * int(planned.rows.want.sum()), 0.1)
        assert core.rows_in_flight == left
    core.next_frame(0.2)
    assert core.rows_in_flight == 1
    core.restart()
    assert core.rows_in_flight == 0


@pytest.mark.parametrize("eased", [False, True])
def test_a_prompt_of_20000_tokens_is_never_wholly_in_flight(eased: bool) -> None:
    """At the shipped bounds of a stage, which lets 16,384 rows and 256 frames wait."""
    limits, prompt = StageLimits(), list(range(1, 22_001))
    layout = Layout(0, 22_528)
    core = Speculation(prompt, layout, StopRule(4), Controller(Costs(), Setting("plain")))
    waiting: list[Frame] = []
    stage = replace(session(), opening=replace(session().opening, layout=layout))
    placed, now, most = 0, 0.0, 0
    while core.finished is None:
        while (planned := core.next_frame(now)) is not None:
            made = Frame(RUN, 0, planned.seq, planned.commits, planned.rows)
            check_room(stage, limits, made)
            stage.queue.append(Arrived(made, now))
            waiting.append(made)
        most = max(most, core.rows_in_flight)
        done = waiting.pop(0)
        stage.queue.popleft()
        placed = filled(placed, done, 0)
        now += 0.01
        if eased and most and not core.counts.accepted and placed == 256:
            core.ease()
        core.on_answer(done.seq, [5] * int(done.rows.want.sum()), now)
    assert placed == len(prompt) + 3
    assert 4096 <= most <= limits.queue_rows // 2


def test_no_row_at_all_and_one_too_many() -> None:
    wide = Layout(8, MAX_ROWS + 1)
    full = certain_rows(wide, 0, [1] * MAX_ROWS)
    check_untrusted(full, no_commits(), wide)
    none = Rows(*(getattr(full, field.name)[:0] for field in fields(full)))
    for rows in (none, certain_rows(wide, 0, [1] * (MAX_ROWS + 1))):
        with pytest.raises(PeerError, match="a frame has 1 to 4096 rows"):
            check_untrusted(rows, no_commits(), wide)


@pytest.mark.parametrize("name", ["position", "prefix", "token", "want", "ancestors"])
def test_one_array_that_is_shorter_than_the_others(name: str) -> None:
    rows = certain_rows(LAYOUT, 0, [1, 2, 3])
    with pytest.raises(PeerError, match="arrays of a frame differ in length"):
        check_untrusted(replace(rows, **{name: getattr(rows, name)[:2]}), no_commits(), LAYOUT)


def test_bits_of_ancestors_that_are_too_many_or_too_few() -> None:
    for width in (0, 2):
        with pytest.raises(PeerError, match="arrays of a frame differ in length"):
            rows = replace(drafted([0], 3), ancestors=np.ones((1, width), np.uint8))
            check_untrusted(rows, no_commits(), LAYOUT)


def test_a_row_at_the_last_position_sees_all_of_the_context() -> None:
    last = certain_rows(LAYOUT, LAYOUT.context - 1, [1])
    assert int(last.prefix[0]) == LAYOUT.context
    check_untrusted(last, no_commits(), LAYOUT)
    with pytest.raises(PeerError, match="position beyond the session's 64"):
        check_untrusted(replace(last, prefix=last.prefix + np.uint32(1)), no_commits(), LAYOUT)


def test_a_row_whose_own_bit_lies_in_another_byte() -> None:
    wide = Layout(32, 64)
    for slot in (7, 8, 17, 31):
        rows = drafted([slot], 3, 32)
        check_untrusted(rows, no_commits(), wide)
        with pytest.raises(PeerError, match="a row must see itself"):
            check_untrusted(replace(rows, ancestors=np.roll(rows.ancestors, 1)), no_commits(), wide)


def test_as_many_commits_as_a_frame_may_have_and_one_more() -> None:
    def many(count: int) -> Commits:
        zeros: Any = np.zeros(count, np.uint32)
        return Commits(zeros, zeros)

    rows = certain_rows(LAYOUT, 0, [1])
    check_untrusted(rows, many(MAX_ROWS), LAYOUT)
    assert len(parse_commits_untrusted(encode_commits(many(MAX_ROWS)), LAYOUT)) == MAX_ROWS
    with pytest.raises(PeerError, match="commits are malformed"):
        check_untrusted(rows, many(MAX_ROWS + 1), LAYOUT)
    with pytest.raises(PeerError, match="expected commits"):
        parse_commits_untrusted(encode_commits(many(MAX_ROWS + 1)), LAYOUT)
    with pytest.raises(PeerError, match="commits are malformed"):
        check_untrusted(rows, Commits(many(2).slot, many(1).position), LAYOUT)
    assert len(parse_commits_untrusted(b"", LAYOUT)) == 0


def test_hidden_rows_of_an_answer_survive_their_bytes() -> None:
    none: Any = np.zeros(0, np.int32)
    hidden = ({"wire": "float32", "shape": [1]}, b"four")
    answer = Answer(RUN, 1, 2, none, none, none, none, none.reshape(0, 0), none.reshape(0, 0), ((3, 4),), hidden=hidden)
    message = encode_answer(answer)
    read = parse_answer_untrusted(message)
    assert message.kind == ANSWER and read.hidden is not None
    assert (read.hidden[0], bytes(read.hidden[1])) == hidden and (read.epoch, read.seq) == (1, 2)
