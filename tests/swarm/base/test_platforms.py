"""Other systems, faked: what Python lacks there is taken away, and the same code must import, lock and stop.

What this cannot show is said in docs/deploy/README.md: nothing here was run on Windows or macOS.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from swarm.base import locks
from swarm.base.signals import on_signals

ROOT = Path(__file__).parents[3]

LIKE_WINDOWS = """
import os, pkgutil, signal, socket, sys
# Libraries choose their own files by the system at import: they are let in first.
import aiohttp, huggingface_hub, platformdirs.unix, prompt_toolkit.shortcuts, psutil, rich.progress, zeroconf.asyncio
import torch, transformers
for name in ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp"):
    sys.modules[name] = None
for name in ("pread", "pwrite", "statvfs", "sched_getaffinity", "O_CLOEXEC", "getuid", "geteuid", "uname"):
    if hasattr(os, name):
        delattr(os, name)
if hasattr(socket, "SO_REUSEPORT"):
    del socket.SO_REUSEPORT
import draft, receipts, swarm
bad = []
for package in (swarm, draft, receipts):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if found.name.rpartition(".")[2] in {"__main__", "_kernels"}:
            continue
        try:
            __import__(found.name)
        except ImportError as error:
            if not {"matplotlib", "triton"} & set(str(error).replace("'", " ").split()):  # of extras
                bad.append(f"{found.name}: {error}")
        except AttributeError as error:
            bad.append(f"{found.name}: {error}")
print("\\n".join(bad))
"""


def test_every_module_imports_without_what_windows_lacks() -> None:
    done = subprocess.run([sys.executable, "-c", LIKE_WINDOWS], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


class Bytes:
    """msvcrt as far as it locks: one holder for each byte of a file."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.held: set[tuple[int, int]] = set()

    def locking(self, handle: int, mode: int, count: int) -> None:
        assert (mode, count) == (self.LK_NBLCK, 1)
        byte = (os.fstat(handle).st_ino, os.lseek(handle, 0, os.SEEK_CUR))
        if byte in self.held:
            raise PermissionError(13, "locked")
        self.held.add(byte)


def test_a_folder_is_locked_by_bytes_where_there_is_no_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Bytes()
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)  # type: ignore[arg-type]
    first, second = (os.open(tmp_path / "lock", locks.OPEN, 0o600) for _ in range(2))
    try:
        assert locks.lock_now(first)
        locks.write_note(first, "4711")
        assert not locks.lock_now(second) and locks.read_note(second) == "4711"
        locks.write_note(first, "12")
        assert locks.read_note(second) == "12"
        assert {at for _, at in fake.held} == {1 << 30}, "the bytes that say who holds it stay readable"
    finally:
        os.close(first)
        os.close(second)


@pytest.mark.parametrize("has_handlers", [True, False])
async def test_signals_reach_the_loop_with_and_without_handlers_of_its_own(
    has_handlers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    if not has_handlers:

        def none(*_: object) -> None:
            raise NotImplementedError

        monkeypatch.setattr(loop, "add_signal_handler", none)
    before = signal.getsignal(signal.SIGTERM)
    told = asyncio.Event()
    with on_signals(told.set):
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(told.wait(), 10)
    assert signal.getsignal(signal.SIGTERM) == before


async def test_in_another_thread_signals_are_left_alone() -> None:
    async def inside() -> None:
        with on_signals(lambda: None):
            pass

    before = signal.getsignal(signal.SIGTERM)
    await asyncio.to_thread(asyncio.run, inside())
    assert signal.getsignal(signal.SIGTERM) == before


def test_no_module_of_one_system_is_imported_without_a_way_round() -> None:
    """At the top of a file such an import stands inside `try`."""
    import ast

    only = {"fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "msvcrt", "winreg"}
    found = []
    for package in ("swarm", "draft", "receipts"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                found += [f"{path.relative_to(ROOT)}: {name}" for name in names if name in only]
    assert found == []
