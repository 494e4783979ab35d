"""Answers that the owner of a machine types at the terminal where its node runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from swarm.base.errors import UsageError
from swarm.base.events import Notice, Report
from swarm.base.owner import OwnerDesk

NO = ("no", "n")
LINE_BYTES = 4096


@contextmanager
def answers_from(terminal: TextIO | None, desk: OwnerDesk, report: Report) -> Iterator[None]:
    """While this lasts and a question waits, lines typed at `terminal` answer it; else nothing is read there.

    A job in the background must not read its terminal (the system would stop it), and what is no terminal is left
    alone: then questions are answered by `swarm admit`.
    """
    if terminal is None or not terminal.isatty():
        yield
        return
    loop, end = asyncio.get_running_loop(), terminal.fileno()

    def read() -> None:
        if not _in_front(end):
            loop.remove_reader(end)
            return
        line = os.read(end, LINE_BYTES)
        if not line:
            loop.remove_reader(end)  # closed: `swarm admit` is left
            return
        word = line.decode(errors="replace").strip().lower()
        try:
            # A bare yes could meet another question than the one that was looked at: what was compared is typed.
            if word in NO:
                desk.answer(None, False)
            elif word.isdecimal():
                desk.answer(word, True)
            elif word:
                report(Notice("type the code if both machines show the same one, no if they do not"))
        except UsageError as error:
            report(Notice(str(error), "warning"))

    def changed() -> None:
        with contextlib.suppress(NotImplementedError, OSError):  # Windows' loop reads no terminals
            if desk.question is not None and _in_front(end):
                loop.add_reader(end, read)
            else:
                loop.remove_reader(end)

    desk.on_change, desk.at_terminal = changed, lambda: _in_front(end)
    try:
        yield
    finally:
        desk.on_change, desk.at_terminal = (lambda: None), (lambda: False)
        with contextlib.suppress(NotImplementedError, OSError):
            loop.remove_reader(end)


def _in_front(end: int) -> bool:
    """Whether this process may read its terminal now."""
    try:
        return os.tcgetpgrp(end) == os.getpgrp()
    except (OSError, AttributeError):  # no controlling terminal; Windows
        return False
