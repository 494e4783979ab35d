from __future__ import annotations

import asyncio
import random
import socket

import pytest

from swarm.base.errors import PeerError
from swarm.net.channel.handshake import MAGIC, PREAMBLE, VERSION, ChannelKeys
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.message import Envelope, Message
from swarm.net.channel.opening import open_channel
from swarm.net.channel.writer import CHUNK_BYTES, MAX_CONTROL, TURN_BYTES
from tests.swarm.net.memory import LEFT, RIGHT, envelope, joined

KEYS = {node.id: ChannelKeys.make(node, 1 << 20) for node in (LEFT, RIGHT)}


def stream() -> tuple[list[Envelope], bytes]:
    left, _ = joined()
    sent = [envelope(1, 10), envelope(2, 70_000), envelope(3, 0)]
    for item in sent:
        left.channel.post(item, 0, "flow")
    return sent, left.transport.take()


@pytest.mark.parametrize("step", [1, 3, 1000, 1 << 20])
async def test_messages_arrive_however_the_stream_is_cut(step: int) -> None:
    sent, data = stream()
    _, right = joined()
    right.feed(data, step)
    assert right.got == sent
    assert right.channel.closed_reason is None


@pytest.mark.parametrize("count", [500, pytest.param(100_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
async def test_any_change_on_the_wire_closes_the_channel_and_delivers_nothing_wrong(count: int) -> None:
    sent, data = stream()
    chance = random.Random(5)
    positions = [*range(200), *(chance.randrange(len(data)) for _ in range(count - 200)), len(data) - 1]
    for position in positions:
        changed = bytearray(data)
        changed[position] ^= 1 << chance.randrange(8)
        left, right = joined()
        right.feed(bytes(changed))
        assert right.got == sent[: len(right.got)] and len(right.got) < len(sent)
        if right.channel.closed_reason is None:  # a longer length waits for bytes; the next ones show it
            assert len(right.transport.take()) == 0
            right.feed(bytes(70_000))
        assert right.channel.closed_reason is not None and right.transport.closed
        assert right.got == sent[: len(right.got)] and len(right.got) < len(sent)
        left.channel.close("done")


def split(data: bytes) -> list[bytes]:
    cut = []
    while data:
        size = 2 + int.from_bytes(data[:2], "big")
        cut.append(data[:size])
        data = data[size:]
    return cut


async def test_replayed_reordered_and_dropped_records_are_refused() -> None:
    _, data = stream()
    first, second, *rest = split(data)
    for wrong in ([first, first], [second, first], [first, rest[0]], [rest[-1]]):
        _, right = joined()
        right.feed(b"".join(wrong))
        assert right.channel.closed_reason is not None and "replayed" in right.channel.closed_reason
        assert len(right.got) <= 1


@pytest.mark.parametrize("head", [b"\0\0", b"\0\x10", b"\0\x01"])
async def test_records_too_short_for_anything_are_refused(head: bytes) -> None:
    _, right = joined()
    right.feed(head)
    assert right.channel.closed_reason is not None and "expected a record" in right.channel.closed_reason


async def test_a_small_message_waits_for_one_chunk_at_most() -> None:
    left, right = joined()
    left.transport.room = 1
    left.channel.post(envelope(1, 1 << 20), 0, "prefill")
    left.channel.post(envelope(2, 100), 0, "decode")
    assert len(left.transport.take()) <= CHUNK_BYTES + 64  # all that went out before the kernel was full
    left.transport.open_window(1)
    left, right = joined()
    left.transport.room = 1
    left.channel.post(envelope(1, 1 << 20), 0, "prefill")
    before = left.transport.take()
    left.channel.post(envelope(2, 100), 0, "decode")
    left.transport.open_window(1 << 60)
    await left.channel.flush()
    right.feed(before)
    right.feed(left.transport.take())
    assert [e.message.header["n"] for e in right.got] == [2, 1]


async def test_the_loop_gets_its_turn_while_large_messages_go_both_ways() -> None:
    left_sock, right_sock = socket.socketpair()
    limits = ChannelLimits()
    for sock in (left_sock, right_sock):
        sock.setblocking(False)
    left, right = await asyncio.gather(
        open_channel(left_sock, KEYS[LEFT.id], limits, initiator=True),
        open_channel(right_sock, KEYS[RIGHT.id], limits, initiator=False),
    )
    most = 0
    size = 512 * 1024
    got = [asyncio.Event(), asyncio.Event()]
    for channel, event in ((left, got[0]), (right, got[1])):
        channel.on_message = lambda envelope, size, event=event: event.set()  # type: ignore[misc]
        channel.start()
    for number, channel in enumerate((left, right)):
        channel.post(envelope(number, size), 0, "x")
    moved = 0
    while not (got[0].is_set() and got[1].is_set()):
        await asyncio.sleep(0)
        now = sum(c.sent_bytes + c.received_bytes for c in (left, right))
        most, moved = max(most, now - moved), now
    assert 0 < most <= 2 * (TURN_BYTES + CHUNK_BYTES) + 2 * 128 * 1024
    left.close("done")
    await right.wait_closed()


async def test_goodbye_delivers_everything_queued_on_both_sides_first() -> None:
    left, right = joined()
    left.channel.post(envelope(1, 300_000), 0, "a")
    right.channel.post(envelope(2, 300_000), 0, "a")
    left.channel.leave("done here")
    with pytest.raises(PeerError, match="done here"):
        left.channel.post(envelope(3, 1), 0, "a")
    for _ in range(20):
        right.feed(left.transport.take())
        left.feed(right.transport.take())
        await asyncio.sleep(0)
    assert [e.message.header["n"] for e in left.got + right.got] == [2, 1]
    assert left.channel.closed_reason == right.channel.closed_reason == "done here"
    assert left.transport.closed and right.transport.closed


async def test_nothing_may_follow_a_goodbye() -> None:
    left, right = joined()
    left.channel._writer.control(b"\x04\0bye")
    left.channel.post(envelope(1, 5), 0, "a")
    right.channel.pause_writing()
    right.feed(left.transport.take())
    assert right.got == [] and right.channel.closed_reason is not None
    assert "after a goodbye" in right.channel.closed_reason


async def test_goodbye_text_is_cleaned() -> None:
    left, right = joined()
    left.channel._writer.control(b"\x04\0\x1b[31mred\x00\xff" + b"x" * 5000)
    left.channel._writer.pump()
    right.feed(left.transport.take())
    left.feed(right.transport.take())
    assert right.channel._leaving is not None and len(right.channel._leaving) <= 200
    assert right.channel._leaving.startswith("[31mred") and right.channel._leaving.isprintable()


async def test_messages_over_the_peers_limit_are_refused_here() -> None:
    left, _ = joined(ChannelLimits(message_bytes=1000, header_bytes=100))
    with pytest.raises(PeerError, match="over the 1000"):
        left.channel.post(envelope(1, 1000), 0, "a")
    with pytest.raises(PeerError, match="over the 1000"):
        left.channel.post(Envelope(Message("m", {"x": "y" * 100})), 0, "a")


async def test_padding_and_pings_pass_between_chunks_and_bring_no_message() -> None:
    left, right = joined()
    left.channel._writer.pad(100_000)
    waiting = asyncio.create_task(left.channel.ping(2))
    for _ in range(10):
        await asyncio.sleep(0)
        right.feed(left.transport.take())
        left.feed(right.transport.take())
    assert (await waiting).count == 2 and right.channel.seen_ping is not None
    assert right.got == [] and left.got == []


async def test_warm_pads_while_held(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = joined()
    release = left.channel.warm(5000)
    left.channel._writer.sent_at -= 10
    left.channel._pulse.beat()
    assert len(left.transport.take()) > 5000
    release()
    release()
    left.channel._writer.sent_at -= 10
    left.channel._pulse.beat()
    assert 0 < len(left.transport.take()) < 50  # only the heartbeat


async def test_silence_closes() -> None:
    left, _ = joined()
    left.channel._pulse._heard_at -= 100
    left.channel._pulse.beat()
    assert left.channel.closed_reason == "nothing was heard for 4 s"
    with pytest.raises(PeerError, match="nothing was heard"):
        await left.channel.flush()


async def test_a_peer_that_pings_and_does_not_read_is_closed() -> None:
    left, right = joined()
    right.transport.room = 1
    right.channel.post(envelope(1, 10), 0, "a")
    for _ in range(MAX_CONTROL + 2):
        right.channel._pings._others = None
        left.channel._pings._own = None
        waiting = asyncio.create_task(left.channel.ping(1))
        await asyncio.sleep(0)
        waiting.cancel()
        right.feed(left.transport.take())
    assert right.channel.closed_reason is not None and "records waiting" in right.channel.closed_reason


# -- the handshake over sockets


def pair() -> tuple[socket.socket, socket.socket]:
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    return left, right


async def read_to_end(sock: socket.socket) -> bytes:
    data = b""
    try:
        while piece := await asyncio.get_running_loop().sock_recv(sock, 65536):
            data += piece
    except ConnectionResetError:
        pass
    sock.close()
    return data


@pytest.mark.parametrize(
    ("sent", "reason", "answer"),
    [
        (b"SSH-2.0-x\r\n", "another protocol", b""),
        (PREAMBLE.pack(MAGIC, 7), "version 1, found 7; update this node", PREAMBLE.pack(MAGIC, VERSION)),
        (PREAMBLE.pack(MAGIC, VERSION) + bytes(32), "damaged or forged", b""),
        (bytes(100_000), "another protocol", b""),
    ],
)
async def test_a_responder_refuses_with_a_reason(sent: bytes, reason: str, answer: bytes) -> None:
    left, right = pair()
    with pytest.raises(PeerError, match=reason):
        async with asyncio.timeout(20):
            opening = asyncio.create_task(open_channel(right, KEYS[RIGHT.id], ChannelLimits(), initiator=False))
            await asyncio.get_running_loop().sock_sendall(left, sent)
            await opening
    assert await read_to_end(left) == answer


async def test_a_dialler_says_which_version_it_met() -> None:
    left, right = pair()
    await asyncio.get_running_loop().sock_sendall(right, PREAMBLE.pack(MAGIC, 2))
    with pytest.raises(PeerError, match="expected protocol version 1, found 2; update this node"):
        await open_channel(left, KEYS[LEFT.id], ChannelLimits(), initiator=True, expect=RIGHT.id)
    right.close()


@pytest.mark.parametrize("initiator", [True, False])
async def test_a_silent_or_slow_other_side_is_given_up_at_the_deadline(initiator: bool) -> None:
    left, right = pair()
    limits = ChannelLimits(handshake_seconds=0.05)
    await asyncio.get_running_loop().sock_sendall(right, PREAMBLE.pack(MAGIC, VERSION)[:5])
    with pytest.raises(PeerError, match="not finished within 0.05 s"):
        await open_channel(left, KEYS[LEFT.id], limits, initiator=initiator)
    assert left.fileno() == -1
    right.close()


async def test_a_closing_other_side_is_told_apart_from_silence() -> None:
    left, right = pair()
    right.close()
    with pytest.raises(PeerError, match="closed the connection|connection broke"):
        await open_channel(left, KEYS[LEFT.id], ChannelLimits(), initiator=False)
