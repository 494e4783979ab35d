"""Two and more nodes on loopback sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator

import pytest

from swarm.base.address import Address
from swarm.base.errors import BusyError, ModelError, PeerError, RunError, UsageError
from swarm.net.channel.limits import ChannelLimits
from swarm.net.channel.message import Message
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard


async def _echo(peer: Peer, message: Message) -> Message:
    return message


async def _busy(peer: Peer, message: Message) -> Message:
    raise BusyError("no room, try later")


async def test_call_send_and_ping_between_two_nodes() -> None:
    got: asyncio.Queue[Message] = asyncio.Queue()

    async def keep(peer: Peer, message: Message) -> None:
        got.put_nowait(message)

    a, b = Identity.generate(), Identity.generate()
    async with Switchboard(a, {"echo": _echo, "busy": _busy}) as left, Switchboard(b, {"frame": keep}) as right:
        address = await left.listen("127.0.0.1", 0)
        peer = await right.peer(a.id, [address])
        assert peer.id == a.id and peer.dialled and peer.edge == "direct"
        body = bytes(range(256)) * 1000
        answer = await peer.call(Message("echo", {"n": 1, "list": [1, "x", b"y"]}, body), timeout=5)
        assert answer.header == {"n": 1, "list": [1, "x", b"y"]} and bytes(answer.body) == body
        with pytest.raises(BusyError, match="try later"):
            await peer.call(Message("busy"), timeout=5)
        with pytest.raises(PeerError, match="does not know"):
            await peer.call(Message("unheard-of"), timeout=5)
        back = left.get(b.id)
        assert back is not None and not back.dialled
        for number in range(20):
            await back.send(Message("frame", {"n": number}, bytes(number * 5000)))
        numbers = [(await got.get()).header["n"] for _ in range(20)]
        assert numbers == list(range(20))
        series = await peer.ping(4)
        assert series.count == 4 and 0 < series.min_us <= series.median_us
        seen = back.seen_ping
        assert seen is not None and seen.id == series.id
        assert (seen.min_us, seen.peer_min_us) == (series.peer_min_us, series.min_us)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's estimate is read on Linux alone")
async def test_the_rate_of_a_path_is_measured() -> None:
    a, b = Identity.generate(), Identity.generate()
    async with Switchboard(a) as left, Switchboard(b) as right:
        peer = await right.peer(a.id, [await left.listen("127.0.0.1", 0)])
        rate = await peer.measure_rate()
        assert rate is not None and rate > 1e6
        assert peer.sent_bytes > 1 << 20


async def test_a_goodbye_tells_the_reason_and_fails_waiting_calls() -> None:
    async def never(peer: Peer, message: Message) -> Message:
        await asyncio.Event().wait()
        return message

    a, b = Identity.generate(), Identity.generate()
    async with Switchboard(a, {"never": never}) as left, Switchboard(b) as right:
        peer = await right.peer(a.id, [await left.listen("127.0.0.1", 0)])
        waiting = asyncio.create_task(peer.call(Message("never"), timeout=30))
        await peer.ping(1)
        back = left.get(b.id)
        assert back is not None
        await back.close("maintenance")
        with pytest.raises(PeerError, match="maintenance"):
            await waiting
        await peer.wait_closed()
        assert peer.closed_reason == "maintenance"
        assert right.get(a.id) is None
        with pytest.raises(PeerError, match="maintenance"):
            await peer.send(Message("x"))


async def test_errors_keep_their_class_and_bugs_stay_inside(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(peer: Peer, message: Message) -> Message:
        raise {"model": ModelError, "run": RunError, "usage": UsageError, "bug": ZeroDivisionError}[
            message.header["e"]
        ]("why\x1b[31m")

    a, b = Identity.generate(), Identity.generate()
    async with Switchboard(a, {"fail": fail}) as left, Switchboard(b) as right:
        peer = await right.peer(a.id, [await left.listen("127.0.0.1", 0)])
        for name, kind in (("model", ModelError), ("run", RunError), ("usage", PeerError)):
            with pytest.raises(kind) as caught:
                await peer.call(Message("fail", {"e": name}), timeout=5)
            assert type(caught.value) is kind and str(caught.value) == "why[31m"
        with pytest.raises(PeerError, match="failed inside") as caught:
            await peer.call(Message("fail", {"e": "bug"}), timeout=5)
        assert "why" not in str(caught.value) and "the handler of 'fail' failed" in caplog.text
        await peer.send(Message("fail", {"e": "bug"}))
        with pytest.raises(ModelError):
            await peer.call(Message("fail", {"e": "model"}), timeout=5)
        assert peer.closed_reason is None


async def test_a_call_ends_at_its_deadline_and_a_late_answer_is_ignored() -> None:
    release = asyncio.Event()

    async def slow(peer: Peer, message: Message) -> Message:
        await release.wait()
        return message

    a, b = Identity.generate(), Identity.generate()
    async with Switchboard(a, {"slow": slow, "echo": _echo}) as left, Switchboard(b) as right:
        peer = await right.peer(a.id, [await left.listen("127.0.0.1", 0)])
        with pytest.raises(PeerError, match="did not answer 'slow' within 0.02 s"):
            await peer.call(Message("slow"), timeout=0.02)
        release.set()
        assert (await peer.call(Message("slow", {"n": 2}), timeout=5)).header == {"n": 2}


@pytest.mark.parametrize("lower_first", [True, False])
async def test_nodes_that_dial_each_other_at_once_keep_one_connection_and_every_message(lower_first: bool) -> None:
    nodes = sorted((Identity.generate() for _ in range(2)), key=lambda n: n.id, reverse=not lower_first)
    got: dict[bytes, list[int]] = {n.id: [] for n in nodes}
    complete = asyncio.Event()
    count = 60

    async def keep(peer: Peer, message: Message) -> None:
        got[peer.id].append(message.header["n"])
        if all(len(numbers) == count for numbers in got.values()):
            complete.set()

    for _ in range(5):
        for numbers in got.values():
            numbers.clear()
        complete.clear()
        async with Switchboard(nodes[0], {"m": keep}) as left, Switchboard(nodes[1], {"m": keep}) as right:
            addresses = [await left.listen("127.0.0.1", 0), await right.listen("127.0.0.1", 0)]

            async def talk(board: Switchboard, other: Identity, address: Address) -> Peer:
                peer = await board.peer(other.id, [address])
                for number in range(count):
                    await peer.send(Message("m", {"n": number}, bytes(number * 2000)))
                    await asyncio.sleep(0)
                return peer

            peers = await asyncio.gather(talk(left, nodes[1], addresses[1]), talk(right, nodes[0], addresses[0]))
            async with asyncio.timeout(20):
                await complete.wait()
            assert all(numbers == list(range(count)) for numbers in got.values())
            assert left.peers() == [peers[0]] and right.peers() == [peers[1]]
            await peers[0].ping(1)
            lower = min(nodes, key=lambda n: n.id)
            assert peers[0].dialled == (nodes[0] is lower) and peers[1].dialled == (nodes[1] is lower)


async def test_a_restarted_node_replaces_its_former_life() -> None:
    a, b = Identity.generate(), Identity.generate()
    async with Switchboard(a, {"echo": _echo}) as left:
        address = await left.listen("127.0.0.1", 0)
        async with Switchboard(b) as first, Switchboard(b) as second:
            old = await first.peer(a.id, [address])
            await old.ping(1)
            before = left.get(b.id)
            new = await second.peer(a.id, [address])
            assert (await new.call(Message("echo", {"n": 1}), timeout=5)).header == {"n": 1}
            after = left.get(b.id)
            assert before is not None and after is not None and before is not after
            assert before.closed_reason is not None and "newer connection" in before.closed_reason
            assert before.instance != after.instance
            await old.wait_closed()


async def test_a_peer_that_is_leaving_is_dialled_anew() -> None:
    a, b = Identity.generate(), Identity.generate()
    async with Switchboard(a, {"echo": _echo}) as left, Switchboard(b) as right:
        address = await left.listen("127.0.0.1", 0)
        old = await right.peer(a.id, [address])
        await old.ping(1)
        leaving = asyncio.create_task(old.close("for now"))
        await asyncio.sleep(0)
        assert old.leaving
        new = await right.peer(a.id, [address])
        assert new is not old and (await new.call(Message("echo", {"n": 1}), timeout=5)).header == {"n": 1}
        await leaving
        assert right.peers() == [new] and new.closed_reason is None


async def test_a_handler_that_is_behind_slows_the_sender_down_and_nothing_is_lost() -> None:
    release = asyncio.Event()
    got: list[int] = []
    complete = asyncio.Event()

    async def slow(peer: Peer, message: Message) -> None:
        await release.wait()
        got.append(message.header["n"])
        if len(got) == 60:
            complete.set()

    small = ChannelLimits(inbox_bytes=1 << 20, queue_bytes=1 << 20)
    a, b = Identity.generate(), Identity.generate()
    async with Switchboard(a, {"m": slow}, small) as left, Switchboard(b, {}, small) as right:
        peer = await right.peer(a.id, [await left.listen("127.0.0.1", 0)])

        async def pour() -> None:
            for number in range(60):
                await peer.send(Message("m", {"n": number}, bytes(500_000)))

        pouring = asyncio.create_task(pour())
        back = left.get(b.id)
        while back is None or back._exchange.waiting_bytes <= small.inbox_bytes:
            await asyncio.sleep(0.001)
            back = left.get(b.id)
        for _ in range(200):
            await asyncio.sleep(0)
        assert not pouring.done() and back._exchange.waiting_bytes < 2 * small.inbox_bytes
        assert peer.queued_bytes < 2 * small.queue_bytes
        release.set()
        await pouring
        async with asyncio.timeout(20):
            await complete.wait()
        assert got == list(range(60))


async def test_a_silent_peer_is_closed_and_its_calls_fail() -> None:
    """The line goes dead without a FIN: a proxy in between stops forwarding."""
    dead = asyncio.Event()
    quick = ChannelLimits(heartbeat_seconds=0.05, silence_seconds=0.3)
    a, b = Identity.generate(), Identity.generate()
    async with Switchboard(a, {"echo": _echo}, quick) as left, Switchboard(b, {}, quick) as right:
        target = await left.listen("127.0.0.1", 0)
        async with proxy(target, dead) as address:
            peer = await right.peer(a.id, [address])
            await peer.call(Message("echo"), timeout=5)
            await asyncio.sleep(0.5)
            assert peer.closed_reason is None  # heartbeats keep an idle connection
            dead.set()
            with pytest.raises(PeerError, match=r"nothing was heard for 0\.3 s"):
                await peer.call(Message("echo"), timeout=20)
            assert right.peers() == []


@contextlib.asynccontextmanager
async def proxy(target: Address, dead: asyncio.Event) -> AsyncIterator[Address]:
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not dead.is_set():
                    writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*target)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()


async def test_a_wrong_node_behind_an_address_is_named() -> None:
    a, b, other = (Identity.generate() for _ in range(3))
    async with Switchboard(a) as left, Switchboard(b) as right:
        address = await left.listen("127.0.0.1", 0)
        with pytest.raises(PeerError, match=f"expected node {other.short}.*found node {a.short}"):
            await right.peer(other.id, [address])
        with pytest.raises(PeerError, match="own peer"):
            await left.peer(a.id, [address])
        assert left.peers() == right.peers() == []


async def test_surplus_nodes_are_told_why() -> None:
    a, b, c = (Identity.generate() for _ in range(3))
    async with contextlib.AsyncExitStack() as stack:
        left = await stack.enter_async_context(Switchboard(a, limits=ChannelLimits(peers=1)))
        address = await left.listen("127.0.0.1", 0)
        boards = [await stack.enter_async_context(Switchboard(node)) for node in (b, c)]
        welcome = await boards[0].peer(a.id, [address])
        await welcome.ping(1)
        surplus = await boards[1].peer(a.id, [address])
        await surplus.wait_closed()
        assert surplus.closed_reason is not None and "busy" in surplus.closed_reason
        assert welcome.closed_reason is None and [p.id for p in left.peers()] == [b.id]


async def test_no_answer_and_no_address() -> None:
    node = Identity.generate()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = closed.getsockname()
        async with Switchboard(Identity.generate()) as board:
            with pytest.raises(PeerError, match=r"no answer from 127\.0\.0\.1:\d+: .*refused"):
                await board.peer(node.id, [address])
            with pytest.raises(PeerError, match="at least one address"):
                await board.peer(node.id, [])


class Seen:
    """A watcher that takes notes."""

    def __init__(self) -> None:
        self.came: list[Peer] = []
        self.went: list[str] = []

    def peer_opened(self, peer: Peer) -> None:
        self.came.append(peer)

    def peer_closed(self, peer: Peer) -> None:
        self.went.append(peer.closed_reason or "")


async def test_leaving_ends_every_task_and_tells_every_peer() -> None:
    a, b = Identity.generate(), Identity.generate()
    seen = Seen()
    async with Switchboard(b) as right:
        right.watch(seen)
        async with Switchboard(a, {"echo": _echo}) as left:
            peer = await right.peer(a.id, [await left.listen("127.0.0.1", 0)])
            await peer.call(Message("echo"), timeout=5)
        await peer.wait_closed()
        assert seen.came == [peer] and seen.went == ["that node left"]
        assert len(left._tasks) == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
