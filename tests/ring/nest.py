"""Node processes by the dozen: forked from one that has imported everything (`tests/warm.py`).

    async with nest(folder_of_the_model, state) as nodes:
        node = await nodes.add((0, 2))       # a real `swarm join`, in a process of its own
        node.signal(signal.SIGKILL)

Between them and a test is the nursery: it forks a node for each line on stdin and prints what becomes of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.warm import warm

READY_S = 120.0
CLOCK_JUMP_S = 3600.0


@dataclass
class Node:
    """One node process. `name` is that of its state folder; a node that is started again has another `life`."""

    nest: Nest
    name: str
    life: str
    layers: tuple[int, int]
    pid: int
    ready: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.ready["node"])

    def signal(self, number: int) -> None:
        """SIGKILL, SIGSTOP, ...; SIGUSR1 moves its clock (not the monotonic one) by an hour."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def ended(self) -> int:
        """Its exit code, negative for a signal."""
        return int((await self.nest.child.event(f"{self.life} ended", READY_S))["code"])


@dataclass
class Nest:
    """The nodes that run, and the way to more. Made by `nest`."""

    child: Any
    model: Path | str
    state: Path
    models: Path
    arguments: tuple[str, ...] = ()
    nodes: list[Node] = field(default_factory=list)
    invite: str = ""
    _lives: int = 0

    async def add(self, layers: tuple[int, int], *arguments: str, name: str = "", lie: str = "") -> Node:
        """Start a node and wait until it serves. `name` of a node that ended starts it again from its state folder.

        `lie`: "module:function" that its process calls first, so that it is no honest node any more.
        """
        self._lives += 1
        life = f"life-{self._lives}"
        name = name or f"node-{self._lives}"
        state = self.state / name
        state.mkdir(parents=True, exist_ok=True)
        words = ["join", "--json", "--no-lan", "--cpu", "--threads", "1", "--dtype", "float32", "--no-punch"]
        words += ["--state", str(state), "--models", str(self.models), "--listen", "127.0.0.1:0"]
        words += ["--layers", f"{layers[0]}:{layers[1]}", "--model", str(self.model)]
        words += ["--swarm", self.invite] if self.invite else []
        words += [*self.arguments, *arguments]
        self.child.say(json.dumps({"life": life, "words": words, "log": str(state), "lie": lie}))
        pid = (await self.child.event(f"{life} born", READY_S))["pid"]
        ready = await self.child.event(f"{life} ready", READY_S)
        if "code" in ready:
            raise RuntimeError(f"{name} ended with code {ready['code']}: {(state / 'node.log').read_text()[-2000:]}")
        node = Node(self, name, life, layers, int(pid), ready)
        self.invite = self.invite or str(ready["invite"])
        self.nodes.append(node)
        return node

    async def ask(self, *words: str, last: tuple[str, ...] = ()) -> Command:
        """Start another command of `swarm`, as a process of its own; options in `last` count before the usual ones."""
        self._lives += 1
        life = f"life-{self._lives}"
        state = self.state / f"asker-{self._lives}"
        state.mkdir(parents=True, exist_ok=True)
        common = ["--state", str(state), "--models", str(self.models), "--swarm", self.invite, "--no-lan"]
        self.child.say(json.dumps({"life": life, "words": [*words, *common, *last], "log": str(state)}))
        pid = (await self.child.event(f"{life} born", READY_S))["pid"]
        return Command(self, life, int(pid), state / "node.log")

    async def again(self, node: Node) -> Node:
        """Start a node that ended once more, under its old identity."""
        self.nodes.remove(node)
        self.invite = next(str(other.ready["invite"]) for other in self.nodes)
        return await self.add(node.layers, name=node.name)

    async def ends(self, node: Node, within_s: float) -> bool:
        """Whether it ends within so many seconds."""
        try:
            async with asyncio.timeout(within_s):
                await node.ended()
        except TimeoutError:
            return False
        return True

    def by_id(self, node: str) -> Node:
        return next(n for n in self.nodes if n.id == node)


@dataclass
class Command:
    """A command that runs. `log` has its stderr."""

    nest: Nest
    life: str
    pid: int
    log: Path

    async def speaks(self) -> None:
        """Return when it has written something to stdout."""
        await self.nest.child.event(f"{self.life} spoke", READY_S)

    async def ended(self) -> tuple[int, str, str]:
        """Its exit code, and what it wrote to stdout and to stderr."""
        event = await self.nest.child.event(f"{self.life} ended", READY_S)
        return int(event["code"]), str(event["out"]), self.log.read_text(errors="replace")


@asynccontextmanager
async def nest(model: Path | str, state: Path, *arguments: str, models: Path | None = None) -> AsyncIterator[Nest]:
    """An empty nest; every process of it ends with the `async with`. `arguments`: for every node."""
    from swarm.testbed.child_process import ChildProcess

    state.mkdir(parents=True, exist_ok=True)
    child = await ChildProcess.start([*warm(), "tests.ring.nest:nursery"], state / "nursery.log", stdin=True)
    try:
        await child.event("ready", READY_S)
        yield Nest(child, model, state, models or state / "models", arguments)
    finally:
        await child.stop(10.0)


def _say(**event: object) -> None:
    print(json.dumps(event), flush=True)


def nursery() -> None:
    """Fork on request until stdin ends; children end with this process, however it ends. It is itself forked from one
    that has imported everything (`warm.py`), with a clock that SIGUSR1 moves."""
    waiting = selectors.DefaultSelector()
    waiting.register(0, selectors.EVENT_READ)
    born: dict[int, tuple[int, str]] = {}
    spoken: dict[int, bytes] = {}
    pending = b""
    _say(event="ready")
    while True:
        for key, _ in waiting.select():
            data = os.read(key.fd, 1 << 16)
            if key.fd == 0:
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    order = json.loads(line)
                    pid, out = _fork(order)
                    born[out] = (pid, order["life"])
                    waiting.register(out, selectors.EVENT_READ)
                    _say(event=f"{order['life']} born", pid=pid)
                continue
            pid, life = born[key.fd]
            if data and key.fd not in spoken:
                _say(event=f"{life} spoke")
            spoken[key.fd] = spoken.get(key.fd, b"") + data
            for line in data.splitlines():
                if b'"ready"' in line:
                    _say(**{**json.loads(line), "event": f"{life} ready"})
            if not data:
                waiting.unregister(key.fd)
                os.close(key.fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                _say(event=f"{life} ready", code=code)  # seen only where it never was
                out = spoken.pop(key.fd).decode(errors="replace")
                _say(event=f"{life} ended", code=code, out=out[-100_000:])


def _fork(order: dict[str, Any]) -> tuple[int, int]:
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.setpgid(0, 0)
    log = os.open(Path(order["log"]) / "node.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(write, 1)
    os.dup2(log, 2)
    os.closerange(3, 1024)
    from swarm.cli.main import main

    code = 99
    try:
        if order.get("lie"):
            module, _, function = order["lie"].partition(":")
            getattr(importlib.import_module(module), function)()
        code = main(order["words"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def movable_clock() -> None:
    """Let SIGUSR1 move what `time.time` says, as a person or NTP would."""
    real, real_ns, ahead = time.time, time.time_ns, [0.0]
    time.time = lambda: real() + ahead[0]
    time.time_ns = lambda: real_ns() + int(ahead[0] * 1e9)

    def jump(*_: object) -> None:
        ahead[0] += CLOCK_JUMP_S

    signal.signal(signal.SIGUSR1, jump)
