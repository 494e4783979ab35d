"""Coverage-guided fuzzing of several targets, one after the other and out of everybody's way.

    python -m tests.fuzz.several [--seconds 60] [TARGET ...]

Without targets: one for each kind of bytes that strangers send. Runs at the lowest priority, so it takes what others
leave. Prints a line for each target and ends with code 1 when one found something.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys

KINDS = ("handshake", "frame", "record", "invite", "receipt", "chat body")
GRACE_SECONDS = 120


def fuzz(target: str, seconds: int) -> tuple[bool, str]:
    """Whether nothing was found, and what to say about it."""
    command = [sys.executable, "-m", "tests.fuzz", target, "--seconds", str(seconds)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds + GRACE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return False, f"{target}: did not end {GRACE_SECONDS} s after its time"
    if done.returncode != 0:
        return False, f"{target}: ended with code {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    runs = re.search(r"Done (\d+) runs", done.stderr)
    return True, f"{target}: {int(runs[1]) if runs else 0:,} inputs, nothing found"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.several", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and the fuzzer with it
    with contextlib.suppress(OSError):
        os.nice(19)
    clean = True
    for target in arguments.targets or KINDS:
        ok, text = fuzz(target, arguments.seconds)
        print(text, flush=True)
        clean = clean and ok
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
