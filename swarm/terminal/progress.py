"""Events for people: bars on a terminal, plain lines in a pipe, JSON lines for programs, a log for the dashboard."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.progress import ProgressColumn as Column
from rich.text import Text

from swarm.base.events import Event, Notice, Progress, Report

_PLAIN_EVERY_S = 5.0
_JSON_EVERY_S = 0.2
_KEPT_NOTICES = 20


@contextmanager
def reporter(json_lines: bool, out: TextIO) -> Iterator[Report]:
    """A `Report` that writes to `out`, from any thread: JSON lines when asked for, bars when `out` is a terminal."""
    if json_lines:
        lines = _Lines(out, JsonLines())
        yield lines.report
    elif out.isatty():
        bars = _Bars(out)
        try:
            yield bars.report
        finally:
            bars.close()
    else:
        lines = _Lines(out, PlainLines())
        yield lines.report


def tee(*reports: Report) -> Report:
    """One report that feeds several."""

    def report(event: Event) -> None:
        for each in reports:
            each(event)

    return report


def amount(done: int, total: int, unit: str) -> str:
    """ "12.3 of 30.1 MB", "4 of 30 layers", "12.3 MB" when the total is unknown."""
    if unit == "bytes":
        scale, name = next(
            ((s, n) for s, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if max(done, total) >= s), (1, "B")
        )
        digits = 0 if scale == 1 else 1
        now, whole = f"{done / scale:.{digits}f}", f"{total / scale:.{digits}f}"
        unit = name
    else:
        now, whole = str(done), str(total)
    return f"{now} of {whole} {unit}" if total else f"{now} {unit}"


@dataclass
class PlainLines:
    """Lines for a pipe or a log file: the beginning, the end, and now and then in between."""

    every_s: float = _PLAIN_EVERY_S
    _last: dict[tuple[str, str], float] = field(default_factory=dict)

    def line(self, event: Event, now: float) -> str | None:
        """The line for this event, or None when the last one is recent enough."""
        if isinstance(event, Notice):
            return event.text if event.level == "info" else f"{event.level}: {event.text}"
        if not _due(self._last, event, now, self.every_s):
            return None
        share = f" ({event.done * 100 // event.total}%)" if event.total else ""
        more = f" ({event.detail})" if event.detail else ""
        return f"{event.step} {event.what}: {amount(event.done, event.total, event.unit)}{share}{more}"


@dataclass
class JsonLines:
    """One JSON object per event."""

    every_s: float = _JSON_EVERY_S
    _last: dict[tuple[str, str], float] = field(default_factory=dict)

    def line(self, event: Event, now: float) -> str | None:
        if isinstance(event, Progress) and not _due(self._last, event, now, self.every_s):
            return None
        return json.dumps(as_json(event), ensure_ascii=False)


def as_json(event: Event) -> dict[str, Any]:
    """`{"event": "progress" | "notice", ...fields}`; `detail` only where there is one."""
    fields = {name: value for name, value in asdict(event).items() if name != "detail" or value}
    return {"event": "notice" if isinstance(event, Notice) else "progress", **fields}


def _due(last: dict[tuple[str, str], float], event: Progress, now: float, every_s: float) -> bool:
    """Whether to tell of a step: first, last, or `every_s` after the one before. Forgets finished steps."""
    key = (event.step, event.what)
    if event.total and event.done >= event.total:
        last.pop(key, None)
        return True
    if key in last and now - last[key] < every_s:
        return False
    last[key] = now
    return True


class _Lines:
    """Writes whole lines, from any thread."""

    def __init__(self, out: TextIO, form: PlainLines | JsonLines) -> None:
        self._out = out
        self._form = form
        self._lock = threading.Lock()

    def report(self, event: Event) -> None:
        with self._lock:
            line = self._form.line(event, time.monotonic())
            if line is not None:
                self._out.write(line + "\n")
                self._out.flush()


class _Amount(Column):
    """ "12.3 of 30.1 MB"."""

    def render(self, task: Task) -> Text:
        total = 0 if task.total is None else int(task.total)
        return Text(amount(int(task.completed), total, str(task.fields["unit"])), style="progress.download")


class _Bars:
    """Bars on a terminal, drawn only while a step is under way.

    Between steps nothing is drawn and nothing is redirected, so what a command prints then (an invite, an answer)
    reaches the terminal or a file as it was written, in lines of its own length.
    """

    def __init__(self, out: TextIO) -> None:
        self._console = Console(file=out)
        self._lock = threading.Lock()
        self._live: Bars | None = None
        self._tasks: dict[tuple[str, str], Any] = {}

    def report(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, Notice):
                style = "yellow" if event.level == "warning" else ""
                self._console.print(escape(event.text), style=style, highlight=False, soft_wrap=True)
            elif event.total and event.done >= event.total:
                self._end((event.step, event.what))
            else:
                self._draw(event)

    def close(self) -> None:
        """Leave the terminal as it was; bars of steps that did not end go as well."""
        with self._lock:
            self._tasks.clear()
            self._stop()

    def _draw(self, event: Progress) -> None:
        if self._live is None:
            self._live = Bars(
                TextColumn("{task.fields[step]}", style="bold"),
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                _Amount(),
                console=self._console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        key, total = (event.step, event.what), event.total or None
        words = escape(f"{event.what}: {event.detail}" if event.detail else event.what)
        if key in self._tasks:
            self._live.update(self._tasks[key], completed=event.done, total=total, description=words)
        else:
            self._tasks[key] = self._live.add_task(
                words, total=total, completed=event.done, step=event.step, unit=event.unit
            )

    def _end(self, key: tuple[str, str]) -> None:
        if self._live is None or key not in self._tasks:
            return
        self._live.remove_task(self._tasks.pop(key))
        if not self._tasks:
            self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class EventLog:
    """What is going on and what was said last, for the dashboard. Feed it through `tee`; safe from any thread."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, str], Progress] = {}
        self._notices: deque[Notice] = deque(maxlen=_KEPT_NOTICES)
        self._lock = threading.Lock()

    def report(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, Notice):
                self._notices.append(event)
            elif event.total and event.done >= event.total:
                self._steps.pop((event.step, event.what), None)
            else:
                self._steps[event.step, event.what] = event

    def as_json(self) -> dict[str, Any]:
        with self._lock:
            return {
                "steps": [asdict(step) for step in self._steps.values()],
                "notices": [asdict(notice) for notice in self._notices],
            }
