"""A child on the leash goes when its parent does."""

from __future__ import annotations

import signal
import subprocess
import sys

WAIT = """
import signal, sys
from unittest import mock
from swarm.cli import child_main

def swarm():
    print("up", flush=True)
    signal.sigwait([signal.SIGUSR1])  # SIGTERM ends the process, as it does a node that has no handler yet

with mock.patch("swarm.cli.main.main", swarm):
    child_main.main()
"""


def test_the_end_of_stdin_ends_the_process() -> None:
    with subprocess.Popen([sys.executable, "-c", WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.stdin.write(b"more words change nothing\n")
        child.stdin.flush()
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(30) == -signal.SIGTERM


def test_a_command_that_ends_by_itself_gives_its_code() -> None:
    code = WAIT.replace("signal.sigwait([signal.SIGUSR1])", "return 3").replace(
        "    child_main.main()", "    sys.exit(child_main.main())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.wait(30) == 3
