"""The network lab for tests: hosts behind delay links and NATs, in namespaces that vanish with the `async with`.

    async with lab(*ring(3, rtt_ms=50)) as net:                 # h1, h2, h3: every pair 50 ms apart
        node = await net.start("h1", "python", "-m", "...")     # a process inside; its JSON lines are awaitable
        net.link("h1", "down")                                  # a silent partition; "up" ends it

Needs what `tests/conftest.py` checks for the marker `lab`: root, iproute2, nftables, a C compiler, /dev/net/tun.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from swarm.testbed.child_process import ChildProcess
from swarm.testbed.cluster import ProcessPlace

Mode = Literal["open", "full", "cone", "leaky", "sym", "noudp"]
SCRIPT = Path(__file__).with_name("natlab.sh")
_counter = itertools.count(1)


@dataclass(frozen=True)
class HostSpec:
    """One host. `delay_ms`: one way from it to the core, so the RTT of two hosts is twice the sum of theirs.

    `rate_mbit`: per direction, 0 for none. `loss_percent`: of packets, each direction. `jitter_ms`: uniform, added.
    """

    mode: Mode = "open"
    delay_ms: float = 12.5
    rate_mbit: float = 0.0
    loss_percent: float = 0.0
    jitter_ms: float = 0.0


def ring(hosts: int, rtt_ms: float, mode: Mode = "open") -> tuple[HostSpec, ...]:
    """So many hosts, each pair `rtt_ms` apart."""
    return (HostSpec(mode, delay_ms=rtt_ms / 4),) * hosts


@dataclass(frozen=True)
class LinkStats:
    """What one direction of a host's link has done: packets in, out, lost, and how late the late ones were."""

    received: int
    sent: int
    lost: int
    late_avg_us: float
    late_max_us: float


class Lab:
    """A running lab. Made by `lab`, which also takes it down."""

    SERVER = "203.0.113.100"
    """Address of host "s", the public server without delay."""

    def __init__(self, prefix: str, folder: Path, hosts: int) -> None:
        self.prefix = prefix
        self.folder = folder
        self.hosts = tuple(f"h{i + 1}" for i in range(hosts))
        self._children: list[ChildProcess] = []

    def address(self, host: str) -> str:
        """The public address that others see for `host`: its own, or its NAT's."""
        return self.SERVER if host == "s" else f"203.0.113.{host.removeprefix('h')}"

    def inside(self, host: str) -> tuple[str, ...]:
        """The words that run a command in `host`."""
        return ("ip", "netns", "exec", f"{self.prefix}-{host}")

    def place(self, host: str, port: int = 0) -> ProcessPlace:
        """`host` as a place for `swarm.testbed.cluster`, listening on its public address (for hosts without NAT)."""
        return ProcessPlace(self.inside(host), f"{self.address(host)}:{port}")

    async def start(self, host: str, *command: str, stdin: bool = False) -> ChildProcess:
        """Start a process in `host`; it is stopped with the lab at the latest. stderr goes to a log in `folder`."""
        log = self.folder / f"{host}-{len(self._children)}.log"
        child = await ChildProcess.start([*self.inside(host), *command], log, stdin=stdin)
        self._children.append(child)
        return child

    async def run(self, host: str, *command: str, seconds: float = 60.0) -> str:
        """Run a process in `host` to its end and return its stdout; raises `RuntimeError` with its stderr."""
        return await _run([*self.inside(host), *command], seconds)

    def link(self, host: str, words: str) -> None:
        """Command the link of `host`: `delay MS`, `jitter MS`, `loss PERCENT`, `rate MBIT`, `down`, `up`."""
        descriptor = os.open(self.folder / f"{host}.ctl", os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(descriptor, f"{words}\n".encode())
        finally:
            os.close(descriptor)

    async def stats(self, host: str) -> tuple[LinkStats, LinkStats]:
        """Counters of the link of `host`: from it, to it."""
        log = self.folder / f"{host}.log"
        before = len(log.read_text())
        self.link(host, "stats")
        async with asyncio.timeout(10):
            while (text := log.read_text()[before:]).count("\n") < 2:  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.01)
        found = re.findall(r"rx=(\d+) tx=(\d+) lost=(\d+) full=\d+ late_avg_us=([\d.]+) late_max_us=([\d.]+)", text)
        out, back = (LinkStats(int(a), int(b), int(c), float(d), float(e)) for a, b, c, d, e in found)
        return out, back

    async def close(self) -> None:
        """Stop every process that was started here and is still running."""
        await asyncio.gather(*(child.stop(5.0) for child in self._children))


@contextlib.asynccontextmanager
async def lab(*specs: HostSpec, single_packets: bool = False) -> AsyncIterator[Lab]:
    """Build hosts h1, h2, ... and take everything down at the end, whatever happened.

    `single_packets`: no segmentation offload, so that loss acts on every packet rather than on trains of them.
    """
    prefix = f"lab{os.getpid()}-{next(_counter)}"
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        script = [str(SCRIPT), "-p", prefix, "-r", folder, *(["-s"] if single_packets else [])]
        words = [f"{spec.mode}:{spec.delay_ms:g}:{spec.rate_mbit:g}" for spec in specs]
        net = Lab(prefix, Path(folder), len(specs))
        try:
            await _run([*script, "up", *words], 60.0)
            for host, spec in zip(net.hosts, specs, strict=True):
                if spec.loss_percent:
                    net.link(host, f"loss {spec.loss_percent:g}")
                if spec.jitter_ms:
                    net.link(host, f"jitter {spec.jitter_ms:g}")
            yield net
        finally:
            try:
                await net.close()
            finally:
                await _run([*script, "down"], 60.0)


async def _run(command: list[str], seconds: float) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(seconds):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with code {process.returncode}: {errors.decode().strip()}")
    return out.decode()
