"""The ways to reach a node, one by one, with all three nodes on loopback. NATs are in tests/lab/test_reach.py."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.address import Address
from swarm.base.errors import BusyError, PeerError
from swarm.net.channel.limits import ReachLimits
from swarm.net.channel.message import Message
from swarm.net.identity import Identity
from swarm.net.peer import Peer
from swarm.net.switchboard import Switchboard
from swarm.net.traversal.inbound import dial_back_addresses
from swarm.net.traversal.messages import ASK, CHECK, JOIN, KNOCK, KNOCKED, KNOWS, Knock, parse_knock_untrusted
from swarm.net.traversal.reach import Reach
from swarm.net.traversal.relay import Relay, RelayLimits
from swarm.net.traversal.rendezvous import EventQuota, check_port, waits_ms
from tests.members import Admits

NO_PUNCH = ReachLimits(knock_after=0.0, relay_after=0.0, punch=0.0, dial_back=0.5)
PUNCH = ReachLimits(knock_after=0.0, relay_after=0.0)


@dataclass
class Three:
    """An asker and a target that are both connected to a home node, and to nothing else."""

    home: Switchboard
    asker: Switchboard
    target: Switchboard
    relay: Relay
    home_address: Address
    reaches: list[Reach]

    async def reach(self) -> Peer:
        peer = await self.asker.peer(self.target.id, [], timeout=10)
        answer = await peer.call(Message("echo", {"n": 1}, bytes(50_000)), timeout=5)
        assert answer.header == {"n": 1} and len(answer.body) == 50_000
        return peer

    def other_end(self) -> Peer:
        peer = self.target.get(self.asker.id)
        assert peer is not None
        return peer


@asynccontextmanager
async def three(
    limits: ReachLimits = NO_PUNCH,
    relay: tuple[bool, bool] = (False, False),
    listens: bool = False,
    relay_limits: RelayLimits | None = None,
) -> AsyncIterator[Three]:
    async def echo(peer: Peer, message: Message) -> Message:
        return message

    app = web.Application()
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=1.0)
    home = Switchboard(Identity.generate())
    asker, target = (Switchboard(Identity.generate(), {"echo": echo}) for _ in range(2))
    async with home, asker, target:
        address = await home.listen("127.0.0.1", 0)
        carrier = Relay(home, [address], relay_limits)
        app.add_routes(carrier.routes())
        await runner.setup()
        home.http = runner.server
        own = [await asker.listen("127.0.0.1", 0)] if listens else []
        reaches = [
            Reach(home, offers_relay=True),
            Reach(asker, addresses=own, relay=relay[0], limits=limits),
            Reach(target, relay=relay[1], limits=limits),
        ]
        for board in (asker, target):
            await (await board.peer(home.id, [address])).ping(1)
        try:
            yield Three(home, asker, target, carrier, address, reaches)
        finally:
            await asyncio.gather(asker.aclose(), target.aclose())
            await runner.cleanup()


async def test_reverse_the_target_dials_the_asker() -> None:
    async with three(listens=True) as nodes:
        peer = await nodes.reach()
        assert (peer.edge, peer.dialled) == ("reverse", False)
        assert (nodes.other_end().edge, nodes.other_end().dialled) == ("reverse", True)


async def test_punched_both_open_at_once_from_the_port_they_use_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback answers before the other side can have begun, so the crossing itself is the lab's to test."""
    ends = list(socket.socketpair())
    calls: list[tuple[Address, Address | None]] = []

    async def cross(target: Address, source: Address | None = None) -> socket.socket:
        calls.append((target, source))
        if len(calls) <= 2:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the other NAT is still closed")
        end = ends.pop()
        end.setblocking(False)
        return end

    monkeypatch.setattr("swarm.net.traversal.connect_methods.connect_one", cross)
    async with three(PUNCH) as nodes:
        seen = {p.id: p.address for p in nodes.home.peers()}
        peer = await nodes.reach()
        assert peer.edge == nodes.other_end().edge == "punched"
        assert peer.dialled and not nodes.other_end().dialled
        asker, target = seen[nodes.asker.id], seen[nodes.target.id]
        assert len(calls) == 4 and set(calls) == {(target, asker), (asker, target)}


async def test_an_introduction_finds_a_mutual_peer() -> None:
    async with three(listens=True) as nodes:
        stranger = Switchboard(Identity.generate())
        asked: list[bytes] = []

        class Introduces:
            async def introduce(self, node: bytes) -> None:
                asked.append(node)
                await stranger.dial(nodes.home.id, [nodes.home_address], 5)

        async with stranger:
            await stranger.listen("127.0.0.1", 0)
            Reach(stranger, introducer=Introduces(), limits=NO_PUNCH)
            peer = await stranger.peer(nodes.target.id, [], timeout=10)
            assert peer.edge == "reverse" and asked == [nodes.target.id]
            assert (await peer.call(Message("echo", {"n": 1}), timeout=5)).header == {"n": 1}


async def test_each_ways_reason_is_told() -> None:
    async with three() as nodes:
        with pytest.raises(PeerError, match="punched: no simultaneous open with 127"):
            await nodes.reach()
        stranger = Identity.generate().id
        with pytest.raises(PeerError, match="punched: none of 1 peers is connected to it"):
            await nodes.asker.peer(stranger, [], timeout=5)


async def test_the_plain_dial_wins_where_it_works() -> None:
    async with three(relay=(True, True)) as nodes:
        address = await nodes.target.listen("127.0.0.1", 0)
        peer = await nodes.asker.peer(nodes.target.id, [address], timeout=5)
        assert (peer.edge, peer.dialled) == ("direct", True)
        await peer.call(Message("echo"), timeout=5)
        assert nodes.asker.peers().count(peer) == 1 and len(nodes.target.peers()) == 2


async def test_both_reach_each_other_at_once() -> None:
    async with three(relay=(True, True), listens=True) as nodes:
        left, right = await asyncio.gather(
            nodes.asker.peer(nodes.target.id, [], timeout=10), nodes.target.peer(nodes.asker.id, [], timeout=10)
        )
        for peer in (left, right):
            try:
                await peer.call(Message("echo"), timeout=5)
            except PeerError:
                assert peer.closed_reason is not None
        left = await nodes.asker.peer(nodes.target.id, [], timeout=10)
        assert (await left.call(Message("echo", {"n": 2}), timeout=5)).header == {"n": 2}


async def test_a_rendezvous_refuses_what_it_cannot_do() -> None:
    async with three() as nodes:
        home = nodes.asker.get(nodes.home.id)
        assert home is not None
        nobody = Identity.generate().id
        assert (await home.call(Message(KNOWS, {"node": nobody}), 5)).header["knows"] is False
        for node, addresses, reason in (
            (nobody, [], "is not connected"),
            (nodes.asker.id, [], "is not connected"),
            (b"short", [], "32 bytes at reach.knock.node"),
            (nodes.target.id, ["x"], "host:port"),
            (nodes.target.id, ["1.2.3.4:5"] * 9, "at most 8"),
        ):
            with pytest.raises(PeerError, match=reason):
                await home.call(Message(KNOCK, {"node": node, "addresses": addresses}), 5)
        nodes.reaches[0].rendezvous._quotas[nodes.asker.id] = EventQuota(0, 60.0)
        with pytest.raises(BusyError, match="too often"):
            await home.call(Message(KNOCK, {"node": nodes.target.id, "addresses": []}), 5)


async def test_a_node_learns_where_it_is_seen_and_whether_it_can_be_dialled() -> None:
    async with three(listens=True) as nodes:
        home = nodes.asker.get(nodes.home.id)
        assert home is not None
        port = nodes.asker.listening[0][1]
        assert await check_port(home, port) == (home.local_address, True)
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            closed_port = nobody.getsockname()[1]
        assert (await check_port(home, closed_port))[1] is False
        assert (await check_port(home, nodes.home_address[1]))[1] is False  # another node answers there
        assert len(nodes.asker.peers()) == 1 and home.closed_reason is None
        with pytest.raises(PeerError, match="from 1 to 65535 at reach.check.port, found 0"):
            await home.call(Message(CHECK, {"port": 0}), 5)


async def test_strangers_get_no_help() -> None:
    async with three() as nodes:
        home, back = nodes.asker.get(nodes.home.id), nodes.home.get(nodes.target.id)
        assert home is not None and back is not None
        nodes.home.members = nodes.target.members = Admits(everybody=False)
        for kind in (KNOWS, KNOCK, CHECK, ASK):
            with pytest.raises(PeerError, match="is not a member of this swarm"):
                await home.call(Message(kind, {"node": nodes.target.id, "addresses": []}), 5)
        for kind in (KNOCKED, JOIN):
            with pytest.raises(PeerError, match="is not a member of this swarm"):
                await back.call(Message(kind, HEADER), 5)


@given(st.lists(st.floats(0, 100), max_size=60))
def test_a_quota_holds_in_every_window(gaps: list[float]) -> None:
    quota, now, taken = EventQuota(3, 50.0), 0.0, []
    for gap in gaps:
        now += gap
        if quota.take(now):
            taken.append(now)
    assert all(taken[i + 3] - taken[i] >= 50.0 for i in range(len(taken) - 3))


@given(st.floats(0, 10_000), st.floats(0, 10_000))
def test_both_begin_at_the_same_moment(a: float, b: float) -> None:
    wait_a, wait_b = waits_ms(a, b)
    assert 0 <= wait_a <= 2000 and 0 <= wait_b <= 2000
    if abs(a - b) <= 4000:
        assert a / 2 + wait_a == pytest.approx(b / 2 + wait_b)


def knock(addresses: list[Address], seen: str = "203.0.113.5", self_seen: str = "203.0.113.9") -> Knock:
    return Knock(bytes(32), (seen, 5), (self_seen, 6), tuple(addresses), 0.0)


def test_a_node_dials_back_only_where_it_hurts_nobody() -> None:
    own, other, private, public = ("203.0.113.5", 7), ("198.51.100.1", 80), ("192.168.1.2", 7), ("0.0.0.0", 9)
    assert dial_back_addresses(knock([own, other, private, public])) == [own, ("203.0.113.5", 9)]
    assert dial_back_addresses(knock([private, other], self_seen="203.0.113.5")) == [private]
    assert dial_back_addresses(knock([("router.local", 80)], self_seen="203.0.113.5")) == []


HEADER = knock([("203.0.113.5", 7), ("::1", 8)]).header()


def test_knocks_round_trip() -> None:
    assert parse_knock_untrusted(HEADER).header() == HEADER


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(
                st.just(HEADER[name]),
                st.none(),
                st.integers(),
                st.floats(),
                st.text(),
                st.binary(),
                st.lists(st.text()),
            )
            for name in HEADER
        },
    )
)
def test_other_headers_raise_the_one_error(header: dict[str, Any]) -> None:
    try:
        read = parse_knock_untrusted(header)
    except PeerError:
        return
    assert 0 <= read.wait_ms <= 2000 and len(read.addresses) <= 8
