"""A whole swarm on this machine: real `swarm join` processes, with emulated distance between them if asked.

Used by `swarm demo`, the benchmarks and the tests of the ring. Nothing here is a shortcut: nodes talk TCP, through
one delay proxy in front of each node when `rtt_ms` is set. A node's proxy is its advertised address, so whoever
dials it, nodes and requester alike, crosses the delay once per direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swarm.base.errors import RunError, UsageError
from swarm.base.events import Notice, Report, silent
from swarm.testbed.child_process import ChildProcess


@dataclass(frozen=True)
class ProcessPlace:
    """Where a process runs: `prefix` goes before its command (`ip netns exec NAME`), `listen` is what it listens on."""

    prefix: tuple[str, ...] = ()
    listen: str = "127.0.0.1:0"


@dataclass(frozen=True)
class LocalSwarm:
    """What to start.

    `state`: folder for keys and logs, one sub-folder per node. `model`: as in `swarm join --model`; None for the
    default. `rtt_ms`, `jitter_ms`, `rate_mbit`: the emulated path in front of every node. `arguments`: further
    words for every `swarm join`. `places`: where the nodes run, in turn. `patience`: seconds to wait for a node to be
    ready, a download included. `grace`: seconds that a node may take to leave after SIGTERM.
    """

    state: Path
    model: str | None = None
    rtt_ms: float = 0.0
    jitter_ms: float = 0.0
    rate_mbit: float = 0.0
    arguments: tuple[str, ...] = ("--cpu", "--threads", "1")
    command: tuple[str, ...] = (sys.executable, "-m", "swarm.cli.child_main")
    places: tuple[ProcessPlace, ...] = (ProcessPlace(),)
    requester: ProcessPlace = ProcessPlace()
    patience: float = 900.0
    grace: float = 10.0

    @property
    def emulated(self) -> bool:
        """Whether a proxy stands in front of every node."""
        return self.rtt_ms > 0 or self.jitter_ms > 0 or self.rate_mbit > 0


def split_layers(n_layers: int, parts: int) -> list[tuple[int, int]]:
    """Cut `n_layers` into `parts` consecutive ranges of nearly equal length, the longer ones first."""
    if not 1 <= parts <= n_layers:
        raise UsageError(f"a model of {n_layers} layers has room for 1 to {n_layers} nodes, found {parts}")
    short, longer = divmod(n_layers, parts)
    ends = [sum(short + (i < longer) for i in range(k)) for k in range(parts + 1)]
    return list(zip(ends, ends[1:], strict=False))


@dataclass
class LocalNode:
    """One running `swarm join`. `ready` is its ready event; `proxy` its delay proxy, None without emulation."""

    name: str
    child: ChildProcess
    proxy: ChildProcess | None
    ready: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The node's id as in its ready event."""
        return str(self.ready["node"])

    @property
    def layers(self) -> tuple[int, int]:
        """The block that it holds."""
        first, last = self.ready["layers"]
        return int(first), int(last)

    def link(self, words: str) -> None:
        """Change the emulated path: `delay MS`, `jitter MS`, `rate MBIT`, `down`, `up`."""
        if self.proxy is None:
            raise UsageError(f"{self.name} has no emulated link; start the swarm with rtt_ms")
        self.proxy.say(words)

    def send_signal(self, number: int) -> None:
        """SIGSTOP, SIGCONT, SIGKILL, ... to the node itself."""
        self.child.send_signal(number)

    async def stop(self, grace: float = 10.0) -> int:
        """Ask the node to leave and wait for it; returns its exit code."""
        code = await self.child.stop(grace)
        if self.proxy is not None:
            await self.proxy.stop(grace)
        return code


class LocalRing:
    """The running swarm. Made by `local_ring`, which also stops it."""

    def __init__(self, swarm: LocalSwarm, report: Report) -> None:
        self.swarm = swarm
        self.nodes: list[LocalNode] = []
        self.requester_state = swarm.state / "requester"
        self._report = report
        self._made = 0

    @property
    def invite(self) -> str:
        """Joins the swarm: the first living node's."""
        for node in self.nodes:
            if node.child.running:
                return str(node.ready["invite"])
        raise RunError("no node of this local swarm is running; add one first")

    async def add(self, layers: tuple[int, int] | None = None, *arguments: str) -> LocalNode:
        """Start one more node (the first one founds the swarm) and wait until it is ready.

        `layers`: its block; None leaves the choice to the node. Raises `RunError` with the node's own last line.
        """
        swarm = self.swarm
        self._made += 1
        name = f"node-{self._made}"
        state = swarm.state / name
        state.mkdir(parents=True, exist_ok=True)
        place = swarm.places[(self._made - 1) % len(swarm.places)]
        words = [*place.prefix, *swarm.command, "join", "--json", "--no-lan", "--state", str(state)]
        words += ["--listen", place.listen]
        words += ["--model", swarm.model] if swarm.model else []
        words += ["--swarm", self.invite] if self.nodes else []
        words += ["--layers", f"{layers[0]}:{layers[1]}"] if layers else []
        async with contextlib.AsyncExitStack() as undo:
            proxy, address = None, None
            if swarm.emulated:
                proxy = await ChildProcess.start(self._proxy_command(), state / "link.log", stdin=True)
                undo.push_async_callback(proxy.stop, swarm.grace)
                address = (await proxy.event("ready", 60.0))["listen"]
                # On one machine a punched path would go round the proxy, and with it the emulated distance.
                words += ["--advertise", address, "--no-punch"]
            child = await ChildProcess.start([*words, *swarm.arguments, *arguments], state / "node.log", stdin=True)
            undo.push_async_callback(child.stop, swarm.grace)
            node = LocalNode(name, child, proxy)
            try:
                node.ready = await child.event("ready", swarm.patience)
            except RunError as exc:
                raise RunError(f"{name} did not start: {exc}") from exc
            if proxy is not None:
                proxy.say(f"to {node.ready['listen']}")
            undo.pop_all()
        self.nodes.append(node)
        self._report(Notice(f"{name} holds layers {node.layers[0]}-{node.layers[1] - 1} at {node.ready['advertise']}"))
        return node

    def _proxy_command(self) -> list[str]:
        path = {
            "--delay-ms": self.swarm.rtt_ms / 2,
            "--jitter-ms": self.swarm.jitter_ms,
            "--rate-mbit": self.swarm.rate_mbit,
        }
        return [sys.executable, "-m", "swarm.testbed.delay_proxy", *(f"{name}={value}" for name, value in path.items())]

    def set_rtt(self, rtt_ms: float) -> None:
        """Move every node to another distance without restarting anything."""
        for node in self.nodes:
            node.link(f"delay {rtt_ms / 2}")

    async def run(self, *arguments: str, timeout: float = 600.0) -> dict[str, Any]:
        """`swarm ARGUMENTS --json` as its own process; returns the object that it printed.

        Raises `RunError` with the command's last line if it fails.
        """
        process = await asyncio.create_subprocess_exec(
            *self.swarm.requester.prefix,
            *self.swarm.command,
            *arguments,
            "--json",
            stdin=PIPE,  # held open: it is the leash
            stdout=PIPE,
            stderr=PIPE,
        )
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            async with asyncio.timeout(timeout):
                out, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            process.stdin.close()
        if process.returncode != 0:
            words = errors.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise RunError(f"swarm {arguments[0]} ended with code {process.returncode}: {words[-1]}")
        result: dict[str, Any] = json.loads(out.strip().rsplit(b"\n", 1)[-1])  # other line ends may stand in its text
        return result

    async def generate(self, prompt: str, *arguments: str, timeout: float = 600.0) -> dict[str, Any]:
        """One `swarm generate` against this swarm, as a process of its own."""
        where: tuple[str, ...] = ("--swarm", self.invite, "--state", str(self.requester_state))
        where += ("--no-punch",) if self.swarm.emulated else ()
        return await self.run("generate", prompt, *where, *arguments, timeout=timeout)

    async def stop(self) -> None:
        """Stop every node, all at once."""
        nodes, self.nodes = self.nodes, []
        await asyncio.gather(*(node.stop(self.swarm.grace) for node in nodes))


@contextlib.asynccontextmanager
async def local_ring(
    swarm: LocalSwarm, layers: Sequence[tuple[int, int] | None], report: Report = silent, *, keep: bool = True
) -> AsyncIterator[LocalRing]:
    """Start one node per entry of `layers`, yield the ring when all are ready, stop everything at the end.

    The first node founds the swarm, so it starts alone; the others load at the same time. `keep=False` removes the
    state folder afterwards. Raises `RunError` when a node does not start; nothing is left running then.
    """
    ring = LocalRing(swarm, report)
    try:
        await ring.add(layers[0])
        starts = [asyncio.create_task(ring.add(block)) for block in layers[1:]]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            raise
        ring.nodes.sort(key=lambda node: node.layers)
        yield ring
    finally:
        await asyncio.shield(ring.stop())
        if not keep:
            shutil.rmtree(swarm.state, ignore_errors=True)
