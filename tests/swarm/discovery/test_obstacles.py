"""Why a swarm was not reached: each cause met over real sockets, and what is made of several answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from swarm.base.errors import PeerError
from swarm.base.nodeid import NodeId
from swarm.discovery.bootstrap import enter_by_invite
from swarm.discovery.obstacles import Outcome, Tried, explain, own_networks, try_addresses
from swarm.mesh.invite import Invite, parse_invite_untrusted
from swarm.mesh.membership import InviteError
from swarm.net.channel.handshake import MAGIC, PREAMBLE, VERSION
from swarm.net.identity import Identity
from swarm.net.switchboard import Switchboard
from swarm.terminal.wan import has_route, members_found
from tests.swarm.mesh.field import Field, invite_of

NODE, ME = Identity.from_seed(b"n" * 32), Identity.from_seed(b"m" * 32)


@asynccontextmanager
async def answering(says: bytes) -> AsyncIterator[tuple[str, int]]:
    """A server that says this and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(says)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()[:2]
        yield host, port


async def outcome(address: tuple[str, int], node: NodeId = NODE.id) -> Outcome:
    (found,) = await try_addresses(ME, [(node, [address])])
    return found.outcome


async def test_each_address_says_what_it_answers() -> None:
    async with Switchboard(NODE) as board:
        address = await board.listen("127.0.0.1", 0)
        assert await outcome(address) == "answers"
        assert await outcome(address, ME.id) == "stranger"
        assert not board.peers()  # nothing was joined
    assert await outcome(address) == "refused"
    assert await outcome(("nobody.invalid", 7700)) == "no name"
    async with answering(b"HTTP/1.1 400 Bad Request\r\n") as web:
        assert await outcome(web) == "stranger"
    async with answering(PREAMBLE.pack(MAGIC, VERSION + 1)) as newer:
        assert await outcome(newer) == "version"
    async with answering(b"") as cut:
        assert await outcome(cut) == "cut"


def tried(*answers: tuple[str, Outcome]) -> list[Tried]:
    return [Tried(NODE.id, (host, 7700), outcome, "why") for host, outcome in answers]


@pytest.mark.parametrize(
    ("answers", "cause"),
    [
        ((("8.8.8.8", "silent"),), "firewall"),
        ((("8.8.8.8", "refused"),), "down"),
        ((("2600::1", "no way"),), "network"),
        ((("home.example", "no name"),), "dns"),
        ((("8.8.8.8", "silent"), ("8.8.4.4", "version")), "version"),
        ((("192.168.9.2", "stranger"), ("8.8.8.8", "silent")), "advertise"),
        ((("192.168.9.2", "silent"), ("127.0.0.1", "refused"), ("fe80::1", "no way")), "advertise"),
        ((("192.168.9.2", "no way"), ("8.8.8.8", "refused")), "down"),
        ((("192.168.1.2", "silent"),), "firewall"),
        ((("8.8.8.8", "cut"), ("8.8.4.4", "silent")), "cut"),
    ],
)
def test_the_cause_is_what_tells_most(answers: tuple[tuple[str, Outcome], ...], cause: str) -> None:
    found = explain(tried(*answers), ["192.168.1.7/255.255.255.0", "::1/128"])
    assert found is not None and found.cause == cause and found.advice
    findings = members_found(tried(*answers), ["192.168.1.7/24"])
    assert findings[-1].standing == "wrong" and findings[-1].found.startswith(f"{cause}: ")


def test_one_address_that_answers_is_enough() -> None:
    answers = tried(("8.8.8.8", "silent"), ("8.8.4.4", "answers"))
    assert explain(answers) is None and explain([]) is None
    assert [finding.standing for finding in members_found(answers, ())] == ["warning", "ok"]


def test_this_machine_is_in_networks() -> None:
    assert any(network.startswith("127.0.0.1/") for network in own_networks())
    assert isinstance(has_route("IPv4"), bool)


@pytest.fixture
async def field_() -> AsyncIterator[Field]:
    async with AsyncExitStack() as stack:
        yield Field(stack)


async def test_who_is_not_reached_hears_the_cause(field_: Field) -> None:
    a = await field_.first()
    invite = parse_invite_untrusted(invite_of(a))
    board, _ = await field_.board(Identity.generate())

    def leading(*addresses: tuple[str, int]) -> Invite:
        return replace(invite, members=((a.board.id, addresses),))

    crowd = [(Identity.generate().id, tuple(("127.0.0.1", port) for port in (9, 10, 11))) for _ in range(40)]
    with pytest.raises(PeerError, match=r"cause: advertise; .*swarm doctor --wan") as many:
        await enter_by_invite(board, replace(invite, members=tuple(crowd)), "guest")
    assert len(str(many.value)) < 500  # a line, however many members are gone
    with pytest.raises(PeerError, match=r"nobody.invalid leads nowhere .*cause: dns"):
        await enter_by_invite(board, leading(("nobody.invalid", 7700)), "guest")
    async with answering(PREAMBLE.pack(MAGIC, VERSION + 1)) as newer:
        with pytest.raises(PeerError, match=r"update this node.*cause: version"):
            await enter_by_invite(board, leading(newer), "guest")


@pytest.mark.parametrize(
    ("away_s", "says"),
    [(8 * 86400, "this machine's clock .*it is ahead .*cause: clock"), (-8 * 86400, None)],
)
async def test_a_clock_that_is_wrong_is_named(
    field_: Field, monkeypatch: pytest.MonkeyPatch, away_s: float, says: str | None
) -> None:
    a = await field_.first()
    invite = parse_invite_untrusted(invite_of(a))
    board, _ = await field_.board(Identity.generate())
    clock: Callable[[], float] = time.time

    class Away:
        @staticmethod
        def time() -> float:
            return clock() + away_s

    monkeypatch.setattr("swarm.discovery.bootstrap.time", Away)
    if says is None:
        await enter_by_invite(board, invite, "guest")  # members go by their own clocks
        return
    with pytest.raises(InviteError, match=says):
        await enter_by_invite(board, invite, "guest")
