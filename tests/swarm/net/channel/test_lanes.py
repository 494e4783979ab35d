from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.base.errors import PeerError
from swarm.net.channel.lanes import FIRST_HEAD, LANES, MORE_HEAD, WHOLE_HEAD, Chunk, Inbox, Outbox
from swarm.net.channel.limits import ChannelLimits

ROOM = 4096
LIMITS = ChannelLimits(message_bytes=100_000, header_bytes=5000)


def records(outbox: Outbox, room: int = ROOM) -> list[bytes]:
    made = []
    while (parts := outbox.next_chunk(room)) is not None:
        record = b"".join(parts)
        assert len(record) <= room
        made.append(record)
    return made


def deliver(made: list[bytes], limits: ChannelLimits = LIMITS) -> list[tuple[bytes, bytes]]:
    inbox = Inbox(limits)
    done = [inbox.take_untrusted(record) for record in made]
    return [(bytes(pair[0]), bytes(pair[1])) for pair in done if pair is not None]


MESSAGES = st.lists(
    st.tuples(
        st.integers(0, 3),  # flow
        st.integers(0, 3),  # level
        st.integers(0, 3000),  # header bytes
        st.one_of(st.integers(0, 200), st.integers(0, 90_000)),  # body bytes
    ),
    max_size=25,
)


@given(MESSAGES, st.integers(64, 9000))
@settings(max_examples=60, deadline=None)
def test_every_message_arrives_whole_and_each_flow_in_order(
    messages: list[tuple[int, int, int, int]], room: int
) -> None:
    outbox = Outbox(LIMITS.partial_bytes)
    sent: dict[int, list[tuple[bytes, bytes]]] = {}
    for number, (flow, level, header_bytes, body_bytes) in enumerate(messages):
        header = struct.pack(">BI", flow, number) + bytes(header_bytes)
        body = bytes([number % 251]) * body_bytes
        outbox.put(flow, level, header, body)
        sent.setdefault(flow, []).append((header, body))
    got: dict[int, list[tuple[bytes, bytes]]] = {}
    for header, body in deliver(records(outbox, room)):
        got.setdefault(header[0], []).append((header, body))
    assert got == sent
    assert outbox.queued_bytes == 0


def test_a_small_message_passes_a_large_one_after_one_chunk() -> None:
    outbox = Outbox(LIMITS.partial_bytes)
    outbox.put("prefill", 0, b"large", bytes(90_000))
    assert outbox.next_chunk(ROOM) is not None
    outbox.put("decode", 0, b"small", b"x" * 100)
    parts = outbox.next_chunk(ROOM)
    assert parts is not None and parts[1] == b"small"


def test_a_more_urgent_level_goes_first_but_not_within_a_flow() -> None:
    outbox = Outbox(LIMITS.partial_bytes)
    outbox.put("bulk", 3, b"bulk", bytes(10))
    outbox.put("urgent", 0, b"urgent", bytes(10))
    outbox.put("bulk", 0, b"behind", bytes(10))
    assert [header for header, _ in deliver(records(outbox))] == [b"urgent", b"bulk", b"behind"]


def test_two_large_flows_share_and_a_stream_of_small_ones_does_not_starve_them() -> None:
    outbox = Outbox(LIMITS.partial_bytes)
    for flow in ("a", "b"):
        outbox.put(flow, 1, flow.encode(), bytes(80_000))
    lanes = [outbox.next_chunk(ROOM)[0][1] for _ in range(10)]  # type: ignore[index]
    assert lanes == [lanes[0], lanes[1]] * 5 and lanes[0] != lanes[1]
    large = 0
    for number in range(200):  # a new small flow before every chunk
        outbox.put(("small", number), 1, b"s", b"")
        parts = outbox.next_chunk(ROOM)
        assert parts is not None
        large += parts[0][0] != Chunk.WHOLE
    assert large >= 10


def test_less_urgent_messages_cannot_take_every_lane() -> None:
    outbox = Outbox(1 << 30)
    for number in range(2 * LANES):
        outbox.put(("bulk", number), 3, b"", bytes(3 * ROOM))
    made = [b"".join(outbox.next_chunk(ROOM) or ()) for _ in range(LANES)]
    outbox.put("urgent", 0, b"urgent", bytes(3 * ROOM))
    made += records(outbox)
    assert made[LANES][0] == Chunk.FIRST and b"urgent" in made[LANES]
    assert len(deliver(made, ChannelLimits())) == 2 * LANES + 1


def test_unfinished_messages_stay_within_what_the_receiver_allows() -> None:
    outbox = Outbox(LIMITS.partial_bytes)
    for number in range(10):
        outbox.put(number, 1, b"", bytes(LIMITS.message_bytes))
    assert len(deliver(records(outbox))) == 10  # the inbox would refuse a third at once


def whole(header: int, data: bytes) -> bytes:
    return WHOLE_HEAD.pack(Chunk.WHOLE, header) + data


def first(lane: int, header: int, body: int, data: bytes = b"x") -> bytes:
    return FIRST_HEAD.pack(Chunk.FIRST, lane, header, body) + data


def more(lane: int, data: bytes = b"x") -> bytes:
    return MORE_HEAD.pack(Chunk.MORE, lane) + data


@pytest.mark.parametrize(
    "made",
    [
        [b"\x09"],
        [b"\x01"],
        [b"\x02\x00"],
        [b"\x03\x00"],
        [whole(2**32 - 1, b"")],
        [whole(5, b"1234")],
        [whole(LIMITS.header_bytes + 1, bytes(6000))],
        [first(0, 2**32 - 1, 2**32 - 1)],
        [first(0, 0, 2**32 - 1)],
        [first(0, 0, LIMITS.message_bytes + 1)],
        [first(0, LIMITS.header_bytes + 1, 0)],
        [first(LANES, 0, 10)],
        [first(0, 0, 10), first(0, 0, 10)],
        [first(0, 0, 100_000), first(1, 0, 100_000), first(2, 0, 1)],
        [first(0, 0, 3, b"1234")],
        [first(0, 2, 1, b"12"), more(0, b"34")],
        [first(0, 0, 2, b"1"), more(0, b"")],
        [first(0, 0, 0, b"")],
        [more(0)],
        [first(0, 0, 2), more(0), more(0)],
        [first(0, 0, 2), more(1)],
    ],
)
def test_refused(made: list[bytes]) -> None:
    with pytest.raises(PeerError):
        deliver(made)


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=30))
def test_random_records_raise_the_one_error_and_hold_only_what_arrived(made: list[bytes]) -> None:
    inbox = Inbox(LIMITS)
    try:
        for record in made:
            inbox.take_untrusted(record)
    except PeerError:
        pass
    held = sum(len(m.header) + len(m.body) for m in inbox._lanes.values())
    assert held <= sum(map(len, made))
