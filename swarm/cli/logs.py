"""Log lines of a command that runs for long: which of them are shown, and in what form."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from swarm.base.events import Notice, Report
from swarm.base.option import option

LEVELS = ("error", "warning", "info", "debug")
ROOTS = ("swarm", "receipts", "draft")


@dataclass(frozen=True)
class LogConfig:
    """`level`: one of LEVELS, the least that is shown; `as_json`: in JSON lines."""

    level: str = option(
        "info",
        "which events get a line on stderr: info tells of members, runs and requests (default: %(default)s)",
        name="--log-level",
        choices=LEVELS,
        group="log",
    )
    as_json: bool = option(False, "write log lines as JSON, one object a line", name="--log-json", group="log")


@contextmanager
def logging_to(report: Report, config: LogConfig, out: TextIO | None = None) -> Iterator[None]:
    """Send our log lines to `report`, or as JSON to `out` (None: stderr), while this lasts."""
    handler: logging.Handler = _AsJson(out or sys.stderr) if config.as_json else _AsNotices(report)
    level = getattr(logging, config.level.upper())
    ours = [logging.getLogger(name) for name in ROOTS]
    before = [(logger.level, logger.propagate) for logger in ours]
    for logger in ours:
        logger.setLevel(level)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, (old_level, old_propagate) in zip(ours, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old_level)
            logger.propagate = old_propagate


class _AsNotices(logging.Handler):
    """Lines among the notices of a command, so that bars are drawn round them: `12:03:44 text`."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        level = "warning" if record.levelno >= logging.WARNING else "info"
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        self._report(Notice(f"{clock} {_text_of(record)}", level))


class _AsJson(logging.Handler):
    """`{"time": seconds since 1970, "level", "from", "text"}`, one a line."""

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "from": record.name,
            "text": _text_of(record),
        }
        self._out.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._out.flush()


def _text_of(record: logging.LogRecord) -> str:
    """The message, and the traceback of a fault of ours behind it."""
    text = record.getMessage()
    if record.exc_info and record.exc_info[0] is not None:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    return text
