"""`python -m swarm.cli.child_main ARGUMENTS`: the `swarm` command for a child process that must not outlive its parent.

The parent holds the other end of stdin. When that closes, for whatever reason, kill -9 included, this process is told
to leave as if by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def watch_stdin() -> None:
    """Wait for the end of stdin, then signal this process."""
    while os.read(0, 4096):  # not through sys.stdin, whose lock a thread must not hold when the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Watch, and run the command."""
    from swarm.cli.main import main as swarm

    threading.Thread(target=watch_stdin, name="leash", daemon=True).start()
    return swarm()


if __name__ == "__main__":
    sys.exit(main())
