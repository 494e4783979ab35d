"""A child process that reports by JSON lines on stdout, as `swarm join --json` and the delay proxy do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swarm.base.errors import RunError


class ChildProcess:
    """A child process that prints JSON lines; its stderr goes to a log file."""

    def __init__(self, process: Process, log: Path) -> None:
        self.process = process
        self.log = log
        self.events: list[dict[str, Any]] = []
        self.arrived = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, command: Sequence[str], log: Path, *, stdin: bool = False) -> ChildProcess:
        """Start `command`; the caller owns the result and must `stop` it."""
        with log.open("ab") as errors:
            # A group of its own: Ctrl-C reaches the parent alone, which then stops its children in order.
            process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE if stdin else DEVNULL, stdout=PIPE, stderr=errors, process_group=0
            )
        return cls(process, log)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "text", "text": line.decode(errors="replace").rstrip()}
            async with self.arrived:
                self.events.append(event)
                self.arrived.notify_all()
        await self.process.wait()
        async with self.arrived:
            self.arrived.notify_all()

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return self.process.returncode is None

    async def event(self, kind: str, timeout: float) -> dict[str, Any]:
        """The first event of this kind, past or future; raises `RunError` if the process ends or time runs out."""
        try:
            async with asyncio.timeout(timeout), self.arrived:
                while True:
                    for event in self.events:
                        if event.get("event") == kind:
                            return event
                    if not self.running:
                        raise RunError(f"it ended with code {self.process.returncode}: {self.last_words()}")
                    await self.arrived.wait()
        except TimeoutError:
            raise RunError(f"no {kind!r} event within {timeout:.0f} s: {self.last_words()}") from None

    def last_words(self) -> str:
        """The last line that it wrote to stderr, for an error message."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"nothing in {self.log}"

    def send_signal(self, number: int) -> None:
        """Signal the process if it still runs."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def say(self, line: str) -> None:
        """Write one line to its stdin."""
        if self.process.stdin is not None and not self.process.stdin.is_closing():
            self.process.stdin.write(f"{line}\n".encode())

    async def stop(self, grace: float) -> int:
        """SIGTERM, then SIGKILL after `grace` seconds; returns the exit code. Safe to call twice."""
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await asyncio.shield(self._reader)
        except TimeoutError:
            self.send_signal(signal.SIGKILL)
            await self._reader
        if self.process.stdin is not None:
            self.process.stdin.close()
        return await self.process.wait()
