from __future__ import annotations

import socket
import sys

import pytest

from swarm.net.channel.pacing import SMALL_SECONDS, SPARE_BYTES, Pacer, Road, read_road
from swarm.net.channel.writer import CHUNK_BYTES
from tests.swarm.net.memory import envelope, joined

RATE, RTT = 2_500_000, 50_000  # 20 Mbit/s and 50 ms: the road holds 125 kB
HOLDS = RATE * RTT // 1_000_000


def pacer(outstanding: int, rtt_us: int = 2 * RTT) -> Pacer:
    return Pacer(lambda: Road(rtt_us, RTT, outstanding, RATE))


def test_alone_a_large_frame_takes_all_it_gets() -> None:
    assert pacer(100 * HOLDS).may_send_large(now=5.0)


def test_beside_small_frames_the_road_is_filled_and_no_more() -> None:
    for outstanding, may in ((HOLDS, True), (HOLDS * 5 // 4 + SPARE_BYTES, False), (3 * HOLDS, False)):
        one = pacer(outstanding)
        one.sent_small(now=5.0)
        assert one.may_send_large(now=5.1) is may
        assert one.may_send_large(now=5.1 + SMALL_SECONDS)  # the small frames have ended


def test_no_queue_no_bound() -> None:
    one = pacer(100 * HOLDS, rtt_us=RTT + 1000)
    one.sent_small(now=5.0)
    assert one.may_send_large(now=5.1)


def test_a_slow_moment_does_not_shrink_the_road() -> None:
    rates = iter([RATE, RATE // 10, RATE // 10])
    one = Pacer(lambda: Road(2 * RTT, RTT, HOLDS, next(rates)))
    one.sent_small(now=5.0)
    assert all(one.may_send_large(now=5.1) for _ in range(3))


def test_where_the_system_tells_nothing_nothing_is_held_back() -> None:
    one = Pacer(lambda: None)
    one.sent_small(now=5.0)
    assert one.may_send_large(now=5.1)
    left, right = socket.socketpair()
    assert read_road(left) is None
    left.close()
    right.close()


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO has this form on Linux")
def test_the_kernel_is_read_right() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        with far:
            for _ in range(20):
                near.sendall(bytes(10_000))
                read = 0
                while read < 10_000:
                    read += len(far.recv(10_000))
            before = read_road(near)
            assert before is not None
            assert 0 < before.min_rtt_us <= before.rtt_us < 5_000_000 and before.rate > 10_000
            near.setblocking(False)
            held = 0
            try:
                while True:
                    held += near.send(bytes(1 << 20))
            except BlockingIOError:
                pass
            full = read_road(near)
            assert full is not None and 0 < full.outstanding <= held


async def test_small_messages_pass_while_a_large_one_is_held_back() -> None:
    left, right = joined()
    left.channel._writer._pacer = pacer(100 * HOLDS)
    left.transport.room = 1
    left.channel.post(envelope(1, 10 * CHUNK_BYTES), 0, "large")
    left.channel.post(envelope(2, 10), 0, "small")
    left.transport.open_window(1 << 60)
    right.feed(left.transport.take())
    assert [e.message.header["n"] for e in right.got] == [2]
    assert left.channel.queued_bytes > 8 * CHUNK_BYTES
    left.channel._writer._pacer = pacer(0)
    await left.channel.flush()  # the writer looks again by itself
    right.feed(left.transport.take())
    assert [e.message.header["n"] for e in right.got] == [2, 1]
