"""Which addresses a node tells of: judged by members that dial it back."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.address import Address
from swarm.base.config import JoinConfig, MemberConfig
from swarm.base.events import Event
from swarm.net.traversal.reach import Reach
from swarm.node.address_check import DialVerdict, judge, keep_judging, told
from swarm.node.node_record import moved, near_hosts, own_addresses
from tests.swarm.mesh.field import Field, Node, invite_of, until

LAN, WAN, BRIDGE = ("192.168.1.5", 7000), ("198.51.100.7", 7000), ("172.17.0.1", 7000)


def test_what_works_comes_first_and_what_does_not_is_left_out() -> None:
    assert told([LAN, BRIDGE], 7000, []) is None
    assert told([LAN], 7000, [DialVerdict(WAN[0], False)]) is None
    assert told([LAN], 7000, [DialVerdict(WAN[0], False)] * 2) == ()
    assert told([LAN, BRIDGE], 7000, [DialVerdict(WAN[0], True)]) == (WAN, LAN, BRIDGE)
    assert told([BRIDGE, LAN], 7000, [DialVerdict(LAN[0], True)]) == (LAN, BRIDGE)
    assert told([LAN, WAN], 7000, [DialVerdict(LAN[0], True), DialVerdict(WAN[0], False)]) == (LAN,)
    assert told([WAN], 7000, [DialVerdict(WAN[0], False), DialVerdict(WAN[0], True)]) == (WAN,)


def test_a_router_that_lets_no_ipv4_in_says_nothing_of_ipv6() -> None:
    six, inner = ("2606:4700::1", 7000), ("fd00::1", 7000)
    closed = [DialVerdict(WAN[0], False)] * 2
    assert told([LAN, six, inner], 7000, closed) == (six,)
    assert told([LAN, six], 7000, [*closed, DialVerdict(six[0], False)]) == ()


async def test_a_machine_that_moves_is_seen_to() -> None:
    found = iter([[LAN], [LAN], [WAN, BRIDGE]])
    assert await moved(lambda: next(found), [LAN], 0.0) == [WAN, BRIDGE]


@pytest.mark.parametrize(("listening", "families"), [("0.0.0.0", {4}), ("::", {4, 6})])
def test_only_what_is_listened_on_is_told(monkeypatch: pytest.MonkeyPatch, listening: str, families: set[int]) -> None:
    entries = [("AF_INET", "192.0.2.9"), ("AF_INET6", "2001:db8::9"), ("AF_INET6", "fe80::9%eth0")]
    found = {"eth0": [SimpleNamespace(family=SimpleNamespace(name=name), address=at) for name, at in entries]}
    monkeypatch.setattr("swarm.node.node_record.psutil.net_if_addrs", lambda: found)
    own = own_addresses(JoinConfig(MemberConfig()), (listening, 7000))
    assert {6 if ":" in host else 4 for host, _ in own} == families and not any("%" in host for host, _ in own)


hosts = st.sampled_from(["10.0.0.1", "10.0.0.2", "198.51.100.7", "2001:db8::1"])


@given(st.lists(hosts, min_size=1, max_size=12, unique=True), st.lists(st.builds(DialVerdict, hosts, st.booleans())))
def test_nothing_is_told_that_only_failed_and_nothing_is_lost_that_worked(
    own: list[str], verdicts: list[DialVerdict]
) -> None:
    found = told([(host, 7000) for host in own], 7000, verdicts)
    opened = {verdict.host for verdict in verdicts if verdict.open}
    closed = {verdict.host for verdict in verdicts} - opened
    if found is None:
        assert len(verdicts) < 2 and not opened
        return
    told_hosts = {host for host, _ in found}
    assert opened <= told_hosts and not told_hosts & closed and len(found) == len(set(found)) <= 8
    assert bool(found) == bool(opened)


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Node, Node]]:
    async with AsyncExitStack() as stack:
        field = Field(stack)
        a = await field.first()
        b = await field.join(invite_of(a))
        for node in (a, b):
            Reach(node.board)
        await until(lambda: all(len(node.up()) == 2 for node in (a, b)), a, b)
        yield a, b


async def settled(node: Node, own: list[Address]) -> tuple[tuple[Address, ...], list[Event]]:
    """What the node tells in the end, and what it says to its user."""
    said: list[Event] = []
    answer: asyncio.Future[tuple[Address, ...]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(keep_judging(node.gossip, node.board, own, answer.set_result, said.append, again_s=0.01))
    try:
        async with asyncio.timeout(20):
            return await answer, said
    finally:
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])


async def test_members_confirm_the_port_that_answers(pair: tuple[Node, Node]) -> None:
    a, b = pair
    assert await judge(b.gossip, b.board, b.address[1]) == [DialVerdict("127.0.0.1", True)]
    own = [("203.0.113.9", b.address[1]), b.address]
    assert await settled(b, own) == ((b.address, own[0]), [])


async def test_a_port_that_nobody_can_dial_is_not_told(pair: tuple[Node, Node]) -> None:
    a, b = pair
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        port = silent.getsockname()[1]
        addresses, said = await settled(b, [("127.0.0.1", port)])
    assert "(cause: nat)" in str(said[0])
    assert addresses == () and len(said) == 1 and f"no member can dial port {port}" in str(said[0])
    b.gossip.publish(addresses=addresses)
    await until(lambda: a.gossip.member(b.board.id).record.addresses == (), a)
    await a.gossip.link(b.board.id)  # it is a peer all the same


def test_machines_of_the_same_network_are_told_where_this_one_listens_and_no_name() -> None:
    member = MemberConfig(Path("/nowhere"), Path("/nowhere"))
    far = JoinConfig(member, advertise=("node.example.org", 7700))
    hosts = near_hosts(far, ("0.0.0.0", 7000))
    assert hosts and all(ipaddress.ip_address(host) for host in hosts)
    assert near_hosts(far, ("192.0.2.7", 7000)) == ["192.0.2.7"]
