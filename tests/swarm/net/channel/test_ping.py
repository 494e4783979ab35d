from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.errors import PeerError
from swarm.net.channel.ping import MAX_COUNT, PROBE, PingRun


def run(count: int, trips: list[int]) -> tuple[PingRun, PingRun, list[bytes]]:
    """Play a series whose one-way trips take `trips` microseconds in turn."""
    ends = (PingRun(5), PingRun(5))
    now, step = 1000, 0
    message: bytes | None = ends[0].start(count, now)
    seen = []
    while message is not None:
        seen.append(message)
        now += trips[step % len(trips)]
        step += 1
        message = ends[step % 2].take_untrusted(message, now)
    return ends[0], ends[1], seen


@given(st.integers(1, MAX_COUNT), st.lists(st.integers(1, 10**6), min_size=1, max_size=300))
def test_both_ends_end_with_the_same_figures(count: int, trips: list[int]) -> None:
    a, b, seen = run(count, trips)
    left, right = a.result, b.result
    assert left is not None and right is not None
    assert left.id == right.id and left.count == right.count == count
    assert (left.min_us, left.median_us) == (right.peer_min_us, right.peer_median_us)
    assert (right.min_us, right.median_us) == (left.peer_min_us, left.peer_median_us)
    hops = [trips[i % len(trips)] for i in range(len(seen))]
    assert left.min_us == min(hops[2 * i] + hops[2 * i + 1] for i in range(count))
    assert right.min_us == min(hops[2 * i + 1] + hops[2 * i + 2] for i in range(count))
    assert len({m[29:45] for m in seen}) == len(seen)  # every nonce is fresh


def test_an_answer_must_carry_the_nonce_and_come_in_turn() -> None:
    _, _, seen = run(2, [10])
    for wrong in (seen[2], seen[1], seen[0], seen[1][:-1], b""):
        asker = PingRun(5)
        first = asker.start(2, 0)
        with pytest.raises(PeerError):
            asker.take_untrusted(wrong if wrong is not seen[0] else first, 5)
    answerer = PingRun(5)
    assert answerer.take_untrusted(seen[0], 0) is not None
    with pytest.raises(PeerError):
        answerer.take_untrusted(seen[2], 1)  # echoes a nonce of another answerer


@pytest.mark.parametrize("last", [0, 1, 2, 4, 2 * MAX_COUNT + 3, 65535])
def test_the_number_of_rounds_is_bounded(last: int) -> None:
    probe = PROBE.pack(5, b"12345678", 0, last, bytes(16), bytes(16), 0, 0)
    with pytest.raises(PeerError, match="rounds"):
        PingRun(5).take_untrusted(probe, 0)


@given(st.binary(min_size=PROBE.size, max_size=PROBE.size))
def test_random_probes_raise_the_one_error(data: bytes) -> None:
    try:
        PingRun(5).take_untrusted(data, 0)
    except PeerError:
        pass
