"""Commands on a real terminal: what can be copied from it, what reaches a file, and how soon Ctrl-C is heard."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.cli.main import main
from swarm.mesh.invite import parse_invite_untrusted
from tests.swarm.model.tiny import random_model, tiny_config

SLOW = """
import asyncio, sys, time
from swarm.cli import main, status
from swarm.cli.loop import run_loop

async def work():
    print("loading", flush=True)
    await asyncio.to_thread(time.sleep, 120)

status.run = lambda arguments: run_loop(work())
sys.argv = ["swarm", "status"]
sys.exit(main())
"""


def terminal(columns: int) -> tuple[int, int]:
    """Both ends of a pseudo-terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return ours, theirs


def read_until(end: int, mark: bytes, seconds: float) -> bytes:
    """Everything that the terminal showed up to `mark`."""
    shown, deadline = b"", time.monotonic() + seconds
    while mark not in shown and time.monotonic() < deadline:
        if select.select([end], [], [], 0.2)[0]:
            try:
                shown += os.read(end, 65536)
            except OSError:  # the other end is closed
                break
    return shown


@pytest.fixture(autouse=True)
def foreground() -> Iterator[None]:
    """Commands begin as a shell begins them in the foreground. In the background it has them ignore Ctrl-C, which they
    would inherit from a run of the tests that was started there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal") / "tiny"
    random_model(tiny_config("llama")).save_pretrained(folder)
    return folder


def words(model: Path, state: Path) -> list[str]:
    join = ["join", "--no-lan", "--listen", "127.0.0.1:0", "--cpu", "--threads", "1", "--model", str(model)]
    return [sys.executable, "-m", "swarm", *join, "--state", str(state), "--models", str(state / "models")]


@pytest.mark.parametrize("columns", [60, 110])
def test_an_invite_can_be_copied_from_a_terminal_and_written_to_a_file(
    model: Path, tmp_path: Path, columns: int
) -> None:
    ours, theirs = terminal(columns)
    with (tmp_path / "out").open("wb") as out:
        to = {60: theirs, 110: out}[columns]
        node = subprocess.Popen(words(model, tmp_path / "node"), stdin=theirs, stdout=to, stderr=theirs)
    os.close(theirs)
    try:
        mark = b"your prompt" if columns == 60 else b"invite others with"
        shown = read_until(ours, mark, 120)
        assert mark in shown
        if columns == 110:
            while not (written := (tmp_path / "out").read_bytes()).count(b"\n") >= 2:
                assert node.poll() is None
                time.sleep(0.1)
            shown += written
        else:
            watch_a_node(tmp_path / "looker", invite_in(shown))
    finally:
        node.send_signal(signal.SIGINT)
        assert node.wait(60) == 0
        os.close(ours)
    parse_invite_untrusted(invite_in(shown))


def invite_in(shown: bytes) -> str:
    lines = [line for line in shown.decode().replace("\r", "").split("\n") if "swarm join --swarm" in line]
    assert len(lines) == 1 and len(lines[0]) > 110
    return lines[0].split()[-1]


def watch_a_node(state: Path, invite: str) -> None:
    """`swarm top` shows the node that serves, in the terminal's other screen, until Ctrl-C."""
    ours, theirs = terminal(80)
    command = [sys.executable, "-m", "swarm", "top", "--no-lan", "--swarm", invite, "--state", str(state)]
    top = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        shown = read_until(ours, b"Ctrl-C leaves", 90)
        assert b"covered" in shown and b"serving" in shown and b"\x1b[?1049h" in shown
    finally:
        top.send_signal(signal.SIGINT)
        read_until(ours, b"\x1b[?1049l", 30)  # a terminal goes on reading: what is drawn meanwhile would fill it
        assert top.wait(30) == 130
        os.close(ours)


def test_there_is_no_top_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--no-lan"]) == 2
    assert "swarm status --watch --json" in capsys.readouterr().err


def test_ctrl_c_is_heard_while_a_thread_is_loading() -> None:
    command = subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE)
    assert command.stdout is not None and command.stdout.readline() == b"loading\n"
    command.send_signal(signal.SIGINT)
    assert command.wait(30) == 130
    command.stdout.close()
