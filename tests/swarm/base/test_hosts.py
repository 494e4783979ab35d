"""Places by host: whoever has many addresses is one, however they are written."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from swarm.base.hosts import host_key
from swarm.serve.listen import Entrance


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("203.0.113.9", "::ffff:203.0.113.9"),
        ("::ffff:203.0.113.9", "::FFFF:cb00:7109"),
        ("2001:db8:0:7::1", "2001:db8:0:7:ffff:ffff:ffff:ffff"),
        ("fe80::1%eth0", "fe80::2%eth1"),
    ],
)
def test_one_host(one: str, other: str) -> None:
    assert host_key(one) == host_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("203.0.113.9", "203.0.113.10"), ("2001:db8:0:7::1", "2001:db8:0:8::1"), ("::1", "127.0.0.1"), ("", "::")],
)
def test_two_hosts(one: str, other: str) -> None:
    assert host_key(one) != host_key(other)


class _Line(asyncio.Transport):
    """A connection from an address."""

    def __init__(self, host: str) -> None:
        super().__init__({"peername": (host, 1, 0, 0)})
        self.said = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.said += bytes(data)

    def close(self) -> None:
        pass


async def test_an_owner_of_many_ipv6_addresses_fills_no_more_than_half_of_the_house() -> None:
    async def never(request: web.BaseRequest) -> web.StreamResponse:
        raise AssertionError

    entrance = Entrance(web.Server(never), 64)
    lines = [_Line(f"2001:db8:0:7::{n:x}") for n in range(1, 50)] + [_Line("2001:db8:0:8::1")]
    guests = [entrance() for _ in lines]
    for guest, line in zip(guests, lines, strict=True):
        guest.connection_made(line)
    assert [b"503" in line.said for line in lines] == [False] * 32 + [True] * 17 + [False]
    for guest in guests:
        guest.connection_lost(None)
    assert not entrance._inside
