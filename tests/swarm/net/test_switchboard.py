"""Two and more nodes on loopback sockets."""

from __future__ import annotations

import asyncio

import pytest

from swarm.errors import BusyError, PeerError
from swarm.identity import Identity
from swarm.net.message import Message
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
