"""The three streams of a process as everything else expects them: present, and of an encoding that takes every text.

A stream that was closed would be None to Python, and its number would go to the next file that is opened: what is
printed by mistake would land in a receipt.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys


def prepare() -> None:
    """Call once, before anything is opened.

    A closed stdin is an empty one, writing to a closed stdout is an error at the first word, and a closed stderr takes
    everything. What stdout's encoding lacks is written as an escape (`\\u2026`). Whatever befalls stderr, a full disk
    under a log for instance, ends nothing.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        with contextlib.suppress(OSError):
            _fill(number, mode)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stderr = Patient(
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)),
        encoding=getattr(sys.stderr, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


def _fill(number: int, mode: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        found = os.open(os.devnull, mode)  # the lowest free number, which is this one: those below are taken by now
        if found != number:
            os.dup2(found, number)
            os.close(found)


class Patient(io.TextIOWrapper):
    """Text for people: where it cannot be written, it is lost, and the work goes on."""

    def write(self, text: str, /) -> int:
        """Never raises OSError."""
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        """Never raises OSError."""
        with contextlib.suppress(OSError):
            super().flush()


def end_output() -> None:
    """Write out what stdout still holds. Raises OSError, after which nothing more is tried at the interpreter's end."""
    try:
        sys.stdout.flush()
    except OSError:
        give_up_output()
        raise


def give_up_output() -> None:
    """What stdout holds goes nowhere: the interpreter would try again at its end, and say so in words of its own."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
