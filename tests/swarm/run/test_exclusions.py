"""Who is left out, and for how long."""

from __future__ import annotations

from swarm.run.exclusions import BUSY_FORGET_S, LOST_FORGET_S, Exclusions


def test_a_lost_node_stays_out_longer_each_time_and_a_busy_one_briefly() -> None:
    absent = Exclusions()
    assert not absent and absent.now(0.0) == frozenset()
    spans = []
    for _ in range(3):
        absent.leave_out(b"lost", 100.0, briefly=False)
        spans.append(next(s for s in range(1, 10_000) if b"lost" not in absent.now(100.0 + s)))
    assert spans == [LOST_FORGET_S, 2 * LOST_FORGET_S, 4 * LOST_FORGET_S]
    for _ in range(3):
        absent.leave_out(b"busy", 0.0, briefly=True)
    assert absent.now(BUSY_FORGET_S - 0.1) == {b"lost", b"busy"} and absent.now(BUSY_FORGET_S) == {b"lost"}
    assert absent and absent.ever([b"other", b"busy", b"lost"]) == [b"lost", b"busy"]


def test_nobody_stays_out_for_ever() -> None:
    absent = Exclusions()
    for _ in range(100):
        absent.leave_out(b"n", 0.0, briefly=False)
    assert absent.now(2000.0) == frozenset()
