from __future__ import annotations

import asyncio
import errno
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.address import Address
from swarm.base.errors import PeerError
from swarm.net import dial
from swarm.net.channel import sockets
from swarm.net.channel.sockets import CONGESTION, UNSENT_BYTES, listening_socket, tune
from swarm.net.dial import connect, in_turn

SIX, FOUR, OTHER = ("2001:db8::1", 1), ("192.0.2.1", 1), ("192.0.2.2", 1)


class Net:
    """Stands in for the network: addresses that never answer, refuse, or answer when told."""

    def __init__(self, **answers: str) -> None:
        self.dialled: list[Address] = []
        self.answers: dict[Address, str] = {}
        self.made: list[socket.socket] = []
        self.names: dict[str, list[Address]] = {}

    async def connect_one(self, address: Address, source: Address | None = None) -> socket.socket:
        self.dialled.append(address)
        match self.answers.get(address, "never"):
            case "refuses":
                raise ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed")
            case "answers":
                self.made.append(socket.socket())
                return self.made[-1]
        await asyncio.Event().wait()
        raise AssertionError

    async def look_up(self, name: Address) -> list[Address]:
        if name[0] not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.names[name[0]]


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    made = Net()
    monkeypatch.setattr(dial, "connect_one", made.connect_one)
    monkeypatch.setattr(dial, "_look_up", made.look_up)
    monkeypatch.setattr(dial, "HEAD_START_SECONDS", 0.01)
    return made


async def test_an_address_that_swallows_packets_does_not_hold_up_the_next(net: Net) -> None:
    net.answers = {FOUR: "answers"}
    sock, address = await connect([FOUR, SIX], 5)
    assert address == FOUR and net.dialled == [SIX, FOUR]
    sock.close()


async def test_all_addresses_of_a_name_take_part(net: Net) -> None:
    net.names["node.example"] = [FOUR, OTHER, SIX]
    net.answers = {SIX: "refuses", OTHER: "answers"}
    sock, address = await connect([("node.example", 1)], 5)
    assert address == OTHER and net.dialled == [SIX, FOUR, OTHER]
    sock.close()


async def test_each_failure_is_told(net: Net) -> None:
    net.answers = {SIX: "refuses"}
    with pytest.raises(PeerError) as caught:
        await connect([SIX, ("nowhere.example", 1)], 5)
    assert "[2001:db8::1]:1 connection refused" in str(caught.value)
    assert "nowhere.example: " in str(caught.value) and "not known" in str(caught.value)
    with pytest.raises(PeerError, match=r"no answer within 0\.05 s"):
        await connect([FOUR], 0.05)


async def test_a_second_answer_is_closed(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()

    async def both(address: Address, source: Address | None = None) -> socket.socket:
        net.dialled.append(address)
        if len(net.dialled) == 2:
            gate.set()
        await gate.wait()
        net.made.append(socket.socket())
        return net.made[-1]

    monkeypatch.setattr(dial, "connect_one", both)
    sock, _ = await connect([SIX, FOUR], 5)
    assert len(net.made) == 2
    assert [s.fileno() == -1 for s in net.made].count(True) == 1 and sock.fileno() != -1
    sock.close()


async def test_the_number_of_targets_is_bounded(net: Net) -> None:
    net.names["many.example"] = [(f"192.0.2.{i}", 1) for i in range(100)]
    net.answers = dict.fromkeys(net.names["many.example"], "refuses")
    with pytest.raises(PeerError):
        await connect([("many.example", 1)], 5)
    assert len(net.dialled) == dial.MAX_TARGETS


@given(st.lists(st.sampled_from([SIX, ("::1", 2), FOUR, OTHER, ("10.0.0.1", 5)])))
def test_families_take_turns(addresses: list[Address]) -> None:
    ordered = in_turn(addresses)
    assert sorted(ordered) == sorted(set(addresses))
    kinds = ["6" if ":" in host else "4" for host, _ in ordered]
    pairs = min(kinds.count("6"), kinds.count("4"))
    assert kinds[: 2 * pairs] == ["6", "4"] * pairs


def test_sockets_are_tuned_before_they_connect_or_listen() -> None:
    def option(sock: socket.socket, name: str) -> int:
        return sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))

    with listening_socket("127.0.0.1", 0) as listener, socket.socket() as plain:
        tune(plain)
        for sock in (listener, plain):
            assert option(sock, "TCP_NODELAY")
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                assert option(sock, "TCP_NOTSENT_LOWAT") == UNSENT_BYTES
            if hasattr(socket, "TCP_CONGESTION"):
                name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).split(b"\0")[0].decode()
                assert name in CONGESTION
    local, _ = socket.socketpair()
    tune(local)  # nothing to set, nothing raised
    local.close()
    _.close()
    assert sockets.remote_address(local) == ("local", 0)


async def test_an_outgoing_connection_is_tuned_before_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned: list[bytes] = []
    loop = asyncio.get_running_loop()
    whole = loop.sock_connect

    async def watched(sock: socket.socket, address: Address) -> None:
        tuned.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).split(b"\0")[0])
        await whole(sock, address)

    monkeypatch.setattr(loop, "sock_connect", watched)
    monkeypatch.setattr(sockets, "CONGESTION", ("reno",))
    with listening_socket("127.0.0.1", 0) as listener:
        sock = await dial.connect_one(listener.getsockname()[:2])
        assert tuned == [b"reno"]
        sock.close()
