"""The lab itself: that its distances, outages and NATs are what they say, and that nothing of it stays behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from swarm.testbed.child_process import ChildProcess
from tests.lab.lab import HostSpec, Lab, lab, ring

pytestmark = pytest.mark.lab

ECHO = """
import json, socket, sys
server = socket.create_server((sys.argv[1], 0))
print(json.dumps({"event": "ready", "port": server.getsockname()[1]}), flush=True)
while True:
    one, address = server.accept()
    print(json.dumps({"event": "met", "address": address[0]}), flush=True)
    while data := one.recv(65536):
        one.sendall(data)
    one.close()
"""

ASK = """
import json, socket, sys, time
one = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3]))
one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
trips = []
for _ in range(5):
    begun = time.perf_counter()
    one.sendall(b"x")
    one.recv(1)
    trips.append((time.perf_counter() - begun) * 1e3)
print(json.dumps(min(trips)))
"""

PUSH = """
import socket, sys, threading
one = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
data = bytes(range(256)) * 4096
threading.Thread(target=one.sendall, args=(data,)).start()
back = b""
while len(back) < len(data):
    back += one.recv(65536)
print(back == data)
"""


async def echo(net: Lab, host: str) -> tuple[ChildProcess, int]:
    child = await net.start(host, sys.executable, "-c", ECHO, net.address(host) if host == "s" else "0.0.0.0")
    return child, int((await child.event("ready", 30))["port"])


async def best_trip(net: Lab, asker: str, answerer: str, port: int, patience: float = 10.0) -> float:
    """Milliseconds of the fastest of five round trips; raises `RuntimeError` when there is no path."""
    said = await net.run(asker, sys.executable, "-c", ASK, net.address(answerer), str(port), str(patience))
    return float(json.loads(said))


def namespaces(prefix: str) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.startswith(prefix)]


async def test_hosts_are_as_far_apart_as_asked_and_nothing_stays_behind() -> None:
    async with lab(*ring(2, rtt_ms=50)) as net:
        child, port = await echo(net, "h1")
        assert await best_trip(net, "h2", "h1", port) >= 50.0
        net.link("h2", "delay 37.5")
        assert await best_trip(net, "h2", "h1", port) >= 100.0
        out, back = await net.stats("h1")
        assert out.sent > 0 and back.sent > 0 and out.lost == 0
        assert len(namespaces(net.prefix)) == 4  # h1, h2, net, s
        folder = net.folder
    assert child.process.returncode is not None
    assert namespaces(net.prefix) == []
    assert not Path(folder).exists()


async def test_a_link_that_is_down_carries_nothing() -> None:
    async with lab(HostSpec(delay_ms=1), HostSpec(delay_ms=1)) as net:
        _, port = await echo(net, "h1")
        net.link("h1", "down")
        with pytest.raises(RuntimeError, match="timed out"):
            await best_trip(net, "h2", "h1", port, patience=0.5)
        net.link("h1", "up")
        await best_trip(net, "h2", "h1", port)


async def test_packets_are_lost_when_asked() -> None:
    async with lab(HostSpec(delay_ms=0.5, loss_percent=2.0), single_packets=True) as net:
        _, port = await echo(net, "s")
        assert (await net.run("h1", sys.executable, "-c", PUSH, net.address("s"), str(port))).strip() == "True"
        out, back = await net.stats("h1")
        assert out.lost + back.lost > 0


@pytest.mark.parametrize("mode", ["cone", "sym"])
async def test_a_host_behind_a_nat_dials_out_and_is_not_dialled(mode: str) -> None:
    async with lab(HostSpec(mode, delay_ms=1), HostSpec(delay_ms=1)) as net:  # type: ignore[arg-type]
        child, port = await echo(net, "h2")
        await best_trip(net, "h1", "h2", port)
        assert (await child.event("met", 10))["address"] == net.address("h1")
        _, hidden = await echo(net, "h1")
        with pytest.raises(RuntimeError, match="timed out|refused|unreachable"):
            await best_trip(net, "h2", "h1", hidden, patience=0.5)


async def test_a_failed_start_leaves_nothing() -> None:
    with pytest.raises(RuntimeError, match="unknown mode"):
        async with lab(HostSpec("wormhole")):  # type: ignore[arg-type]
            pytest.fail("it is up")
