"""The delay proxy: its schedule as a pure function, and real sockets through the real process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.config import parse_address
from swarm.base.errors import UsageError
from swarm.testbed.impairment import Link, Wire


@given(
    st.floats(0, 200),
    st.floats(0, 50),
    st.floats(0, 1000),
    st.lists(st.tuples(st.integers(0, 70_000), st.floats(0, 1))),
)
def test_no_byte_is_early_and_none_overtakes(
    delay: float, jitter: float, rate: float, writes: list[tuple[int, float]]
) -> None:
    wire = Wire(Link(delay, jitter, rate), opened=10.0)
    now, last = 9.5, 0.0
    for size, gap in writes:
        now += gap
        due = wire.due(size, now)
        assert due >= last
        assert due >= max(now, 10.0) + delay * 1e-3
        last = due


def test_rate_spaces_bytes_by_their_size() -> None:
    wire = Wire(Link(delay_ms=10, rate_mbit=8), opened=0.0)  # 8 Mbit/s: a byte per microsecond
    assert wire.due(1000, 0.0) == pytest.approx(0.011)
    assert wire.due(1000, 0.0) == pytest.approx(0.012)
    assert wire.queued_ms(0.0) == pytest.approx(2.0)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_link_refuses_impossible_delays(bad: float) -> None:
    with pytest.raises(UsageError, match="delay_ms"):
        Link(delay_ms=bad)


@pytest.mark.parametrize("bad", ["", "7700", ":7700", "host:", "host:70000", "host:-1"])
def test_addresses_are_checked(bad: str) -> None:
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        parse_address(bad)


def test_ipv6_addresses_lose_their_brackets() -> None:
    assert parse_address("[::1]:80") == ("::1", 80)


class Running:
    """A proxy process with its address and its stdin."""

    def __init__(self, process: asyncio.subprocess.Process, address: tuple[str, int]) -> None:
        self.process = process
        self.address = address

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())


@contextlib.asynccontextmanager
async def proxy(*arguments: str) -> AsyncIterator[Running]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "swarm.testbed.delay_proxy",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        yield Running(process, parse_address(ready["listen"]))
    finally:
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 30) == 0


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"


async def test_bytes_arrive_whole_after_the_round_trip() -> None:
    payload = bytes(range(256)) * 4096
    async with echo() as target, proxy("--to", target, "--delay-ms", "15") as running:
        reader, writer = await asyncio.open_connection(*running.address)
        writer.write(b"!")
        assert await reader.readexactly(1) == b"!"
        trips = []
        for _ in range(5):
            begun = time.monotonic()
            writer.write(b"?")
            await reader.readexactly(1)
            trips.append((time.monotonic() - begun) * 1e3)
        assert statistics.median(trips) >= 30.0
        writer.write(payload)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 30) == payload
        writer.close()


async def test_a_dial_costs_its_handshake() -> None:
    async with echo() as target, proxy("--to", target, "--delay-ms", "20") as running:
        begun = time.monotonic()
        reader, writer = await asyncio.open_connection(*running.address)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        assert time.monotonic() - begun >= 0.080  # SYN, SYN-ACK, ACK with the request, the answer
        writer.close()


async def test_an_end_of_file_is_passed_on_and_the_other_half_stays_open() -> None:
    seen = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b"question"
        seen.set()
        writer.write(b"answer")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, proxy("--to", f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as running:
        reader, writer = await asyncio.open_connection(*running.address)
        writer.write(b"question")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 30) == b"answer"
        assert seen.is_set()
        writer.close()


async def test_a_connection_waits_for_a_target_that_is_named_later() -> None:
    async with echo() as target, proxy() as running:
        reader, writer = await asyncio.open_connection(*running.address)
        writer.write(b"early")
        running.say(f"to {target}")
        assert await asyncio.wait_for(reader.readexactly(5), 30) == b"early"
        writer.close()


async def test_an_absent_target_ends_the_connection() -> None:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with proxy("--to", f"127.0.0.1:{port}") as running:
        reader, writer = await asyncio.open_connection(*running.address)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()


async def test_a_partition_holds_bytes_and_then_lets_them_go() -> None:
    async with echo() as target, proxy("--to", target) as running:
        reader, writer = await asyncio.open_connection(*running.address)
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        running.say("down")
        # The command and the byte race on two descriptors; an echo that stops coming back shows that it is down.
        while True:
            writer.write(b"2")
            try:
                assert await asyncio.wait_for(reader.readexactly(1), 0.2) == b"2"
            except TimeoutError:
                break
        running.say("up")
        assert await asyncio.wait_for(reader.readexactly(1), 30) == b"2"
        writer.close()


async def test_an_unknown_command_is_named_and_does_no_harm() -> None:
    async with echo() as target, proxy("--to", target) as running:
        running.say("teleport 5")
        running.say("delay -4")
        reader, writer = await asyncio.open_connection(*running.address)
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        writer.close()


async def test_a_taken_port_is_one_clear_line() -> None:
    async with echo() as target:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "swarm.testbed.delay_proxy", "--listen", target, stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, errors = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 2
        assert b"cannot listen" in errors and b"Traceback" not in errors
