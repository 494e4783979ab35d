"""A relayed connection gives way to a direct one, later, under the same peer and without losing a message."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any

import pytest

from swarm.base.errors import PeerError
from swarm.net.channel.channel import Channel
from swarm.net.channel.message import Message
from swarm.net.dial import connect
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.net.traversal.race import Race
from swarm.net.traversal.reach import Reach
from tests.swarm.net.traversal.test_reach import NO_PUNCH, Three, three

AGAIN = replace(NO_PUNCH, upgrade_after=(0.05,) * 100, upgrade_busy=0.01)


async def edge_becomes(peer: Peer, edge: str) -> None:
    async with asyncio.timeout(10):
        while peer.edge != edge:
            assert peer.closed_reason is None
            await asyncio.sleep(0.01)


async def relayed(nodes: Three, address: tuple[str, int] | None = None) -> tuple[Peer, Peer]:
    peer = await nodes.asker.peer(nodes.target.id, [address] if address else [], timeout=10)
    await peer.ping(1)
    assert peer.edge == nodes.other_end().edge == "relay"
    return peer, nodes.other_end()


def free_address() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return "127.0.0.1", server.getsockname()[1]


@pytest.mark.parametrize("way", ["direct", "reverse"])
async def test_a_path_that_opens_later_is_found_and_the_relay_is_left(way: str) -> None:
    address = free_address()
    async with three(AGAIN, relay=(True, True)) as nodes:
        peer, other = await relayed(nodes, address)
        if way == "direct":
            await nodes.target.listen(*address)
        else:
            await nodes.asker.listen("127.0.0.1", 0)
        await edge_becomes(peer, way)
        await edge_becomes(other, way if way == "reverse" else "direct")
        assert nodes.asker.get(nodes.target.id) is peer and nodes.other_end() is other
        assert (await peer.call(Message("echo", {"n": 2}), timeout=5)).header == {"n": 2}
        assert (await other.call(Message("echo", {"n": 3}), timeout=5)).header == {"n": 3}
        assert peer.dialled == (way == "direct") and other.dialled == (way == "reverse")
        async with asyncio.timeout(5):
            while nodes.relay.rooms:  # noqa: ASYNC110 - the room has no event for tests
                await asyncio.sleep(0.005)


async def test_no_search_while_a_run_uses_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    searches, looks, busy = [], asyncio.Event(), Peer.busy.fget
    assert busy is not None

    def seen(peer: Peer) -> bool:
        looks.set()
        return bool(busy(peer))

    async def search(self: Reach, *args: Any, **named: Any) -> None:
        searches.append(args)

    async with three(replace(AGAIN, upgrade_after=(0.01,)), relay=(True, True)) as nodes:
        peer, _ = await relayed(nodes)
        with peer.warm():
            monkeypatch.setattr(Peer, "busy", property(seen))
            monkeypatch.setattr(Reach, "_race", search)
            for _ in range(3):
                looks.clear()
                await looks.wait()
            assert not searches
        async with asyncio.timeout(5):
            while not searches:  # noqa: ASYNC110 - the search has no event
                await asyncio.sleep(0.005)


async def test_searches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []

    async def search(self: Reach, *args: Any, **named: Any) -> None:
        searches.append(args)
        raise PeerError("no way")

    async with three(relay=(True, True)) as nodes:
        peer, _ = await relayed(nodes)
        monkeypatch.setattr(Reach, "_race", search)
        nodes.reaches[1].limits = replace(NO_PUNCH, upgrade_after=(0.0, 0.0, 0.0))
        await nodes.reaches[1]._leave_relay(peer, [])
        assert len(searches) == 3 and peer.edge == "relay" and peer.closed_reason is None


async def as_if_relayed(left: Switchboard, right: Switchboard) -> tuple[Peer, Peer, tuple[str, int]]:
    """Two connected nodes that take their connection for a relayed one."""
    address = await right.listen("127.0.0.1", 0)
    peer = await left.peer(right.id, [address])
    await peer.ping(1)
    other = right.get(left.id)
    assert other is not None
    peer.edge = other.edge = "relay"
    return peer, other, address


async def test_messages_under_way_both_ways_arrive_once_and_in_order() -> None:
    got: dict[bytes, list[int]] = {}
    count, complete = 200, asyncio.Event()

    async def keep(peer: Peer, message: Message) -> None:
        got.setdefault(peer.id, []).append(message.header["n"])
        if [len(numbers) for numbers in got.values()] == [count, count]:
            complete.set()

    async def talk(peer: Peer) -> None:
        for number in range(count):
            await peer.send(Message("m", {"n": number}, bytes(number * 500)))
            await asyncio.sleep(0)

    async with (
        Switchboard(Identity.generate(), {"m": keep}) as left,
        Switchboard(Identity.generate(), {"m": keep}) as right,
    ):
        peer, other, address = await as_if_relayed(left, right)
        talking = [asyncio.create_task(talk(one)) for one in (peer, other)]
        while len(got.get(left.id, ())) < 20:  # noqa: ASYNC110 - any moment in the middle will do
            await asyncio.sleep(0)
        sock, _ = await connect([address], 5)
        assert await left.adopt(sock, initiator=True, expect=right.id, edge="punched") is peer
        async with asyncio.timeout(20):
            await asyncio.gather(*talking)
            await complete.wait()
        assert all(numbers == list(range(count)) for numbers in got.values())
        assert (peer.edge, other.edge) == ("punched", "direct")
        assert left.peers() == [peer] and right.peers() == [other]


async def test_another_relayed_connection_replaces_the_first_as_ever() -> None:
    async with Switchboard(Identity.generate()) as left, Switchboard(Identity.generate()) as right:
        peer, _, address = await as_if_relayed(left, right)
        sock, _ = await connect([address], 5)
        newer = await left.adopt(sock, initiator=True, expect=right.id, edge="relay")
        assert newer is not peer and peer.closed_reason is not None


async def test_a_relayed_connection_that_breaks_before_it_has_finished_ends_the_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it still carried is lost, so nothing may go on as if it were not."""
    whole = Channel.leave

    def mute(self: Channel, reason: str, *more: Any) -> None:
        if self is not breaking:
            whole(self, reason, *more)

    monkeypatch.setattr(Channel, "leave", mute)
    monkeypatch.setattr("swarm.net.peer.RIVAL_SECONDS", 0.05)
    async with Switchboard(Identity.generate()) as left, Switchboard(Identity.generate()) as right:
        peer, other, address = await as_if_relayed(left, right)
        breaking = other._channel
        sock, _ = await connect([address], 5)
        await left.adopt(sock, initiator=True, expect=right.id, edge="punched")
        async with asyncio.timeout(5):
            await asyncio.gather(peer.wait_closed(), other.wait_closed())
        assert "before it had finished" in f"{peer.closed_reason}{other.closed_reason}"


async def test_a_search_that_fails_leaves_nothing_to_wait_for() -> None:
    """Who waited for the arrival of a relayed node and gave up waits no more: for weeks, one for each such node."""
    async with three(relay=(True, True)) as nodes:
        await relayed(nodes)
        for board in (nodes.asker, nodes.target):
            assert not board._arrivals
        reach = nodes.reaches[1]
        race = Race(nodes.asker, nodes.target.id, over_relay=True)
        with pytest.raises(PeerError):
            await reach._race(race, [free_address()], 0.5, relay=False)
        assert not nodes.asker._arrivals and not nodes.target._arrivals
