"""Two machines on one cable: the second hears the first's swarm, both show a code, and two words let it in."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.swarm.cli.test_terminal import read_until, terminal
from tests.swarm.model.tiny import random_model, tiny_config

pytestmark = pytest.mark.lab


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def cable() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them, over which multicast goes."""
    names = (f"wl{os.getpid()}a", f"wl{os.getpid()}b")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", names[0], "link", "add", "lan", "type", "veth", "peer", "name", "lan", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "lan")
            for device in ("lo", "lan"):
                ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "route", "add", "224.0.0.0/4", "dev", "lan")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def until_said(log: Path, what: str, process: subprocess.Popen[bytes], seconds: float = 90) -> str:
    deadline = time.monotonic() + seconds
    while (found := re.search(what, log.read_text())) is None:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return found[0]


def own_terminal() -> None:
    """In a new process: its stdin is the terminal of its session, as where a person types."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.soak  # in one process, with somebody in the middle: tests/swarm/discovery/test_lan_admission.py
def test_a_code_on_both_machines_lets_the_second_in(cable: tuple[str, str], tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    random_model(tiny_config("llama")).save_pretrained(model)

    def words(name: str, *command: str) -> list[str]:
        return ["ip", "netns", "exec", name, sys.executable, "-m", "swarm", *command, "--state", str(tmp_path / name)]

    a, b = cable
    join = ("join", "--cpu", "--threads", "1", "--models", str(tmp_path / "models"))
    ours, theirs = terminal(120)
    first = subprocess.Popen(
        words(a, *join, "--model", str(model), "--layers", "0:1", "--advertise", "first.invalid:7700"),
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=own_terminal,
    )  # fmt: skip
    os.close(theirs)
    log = tmp_path / "second.log"
    second: subprocess.Popen[bytes] | None = None
    try:
        assert b"your prompt" in read_until(ours, b"your prompt", 90)
        with log.open("wb") as out:
            second = subprocess.Popen(words(b, *join), stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        asked = until_said(log, r"10\.77\.0\.1 .*show the code \d{6} \(the terminal of swarm join there\)", second)
        code = re.findall(r"code (\d{6})", asked)[0]
        shown = read_until(ours, b"type the code, else no", 10).decode()
        assert "10.77.0.2 (node" in shown and re.findall(r"show the code (\d{6})", shown) == [code]
        os.write(ours, b"yes\n")  # to which code?
        assert b"type the code if both machines show the same one" in read_until(ours, b"if they do not", 10)
        os.write(ours, code.encode() + b"\n")
        subprocess.run(words(b, "admit", code), check=True, capture_output=True, timeout=60)
        until_said(log, "serving layers", second)
        assert b"is let in; to end that: swarm revoke" in read_until(ours, b"joined", 20)
        assert len(list((tmp_path / a / "admitted").iterdir())) == 1
    finally:
        for node in (first, second):
            if node is not None and node.poll() is None:
                node.send_signal(signal.SIGINT)
                assert node.wait(60) == 0
        os.close(ours)
