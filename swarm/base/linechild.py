"""A process of our own that answers lines: for work on bytes from anybody that may take too much and is then ended."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Any

from swarm.base.errors import ModelError

try:
    import resource
except ImportError:  # Windows: the parent's deadline is what remains
    resource = None  # type: ignore[assignment]

START_S = 60.0


class LineChild:
    """One process in a fresh interpreter (never by fork) that runs `main()` of a module.

    It answers every line of its stdin with one JSON object a line, and says one such object when it is ready. `purpose`
    is for the error: "renders chat templates". Raises ModelError when it does not start.
    """

    def __init__(self, module: str, purpose: str) -> None:
        start = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", start, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for the parent
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        if self.ask(b"", START_S, 4096) is None:
            self.end()
            raise ModelError(f"the process that {purpose} did not start: {sys.executable} -I; run doctor")

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def ask(self, line: bytes, wall_s: float, most: int) -> dict[str, Any] | None:
        """Its answer to one line; None when it did not give one in time, or too long a one. It is of no use then."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        watch = threading.Timer(wall_s, self._process.kill)
        watch.daemon = True
        watch.start()
        try:
            stdin.write(line)
            stdin.flush()
            answer = stdout.readline(most)
            return dict(json.loads(answer)) if answer.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        finally:
            watch.cancel()

    def end(self) -> None:
        """Kill it. Safe to call twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass


# What such a process does on its own side.


def bound(name: str, value: int) -> None:
    """Lower a soft limit ("RLIMIT_CPU"). Where a system does not know this one, the parent's deadline remains."""
    if (kind := getattr(resource, name, None)) is None:
        return
    try:
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    except (ValueError, OSError):
        pass


def bound_processor(seconds: int) -> None:
    """From now on at most about so many seconds of processor time."""
    bound("RLIMIT_CPU", int(time.process_time()) + 1 + seconds)


def bound_memory(more_bytes: int) -> None:
    """No file, no core, and at most so much address space beyond what is mapped now."""
    bound("RLIMIT_FSIZE", 0)
    bound("RLIMIT_CORE", 0)
    bound("RLIMIT_AS", _mapped_bytes() + more_bytes)


def answer(value: dict[str, Any]) -> None:
    """One line to the parent."""
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
    sys.stdout.buffer.flush()


def _mapped_bytes() -> int:
    """Address space in use now, bytes; a guess where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 30
