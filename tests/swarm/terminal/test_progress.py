from __future__ import annotations

import io
import json
import threading

from swarm.base.events import Event, Notice, Progress
from swarm.terminal.progress import EventLog, JsonLines, PlainLines, amount, reporter, tee


def load(done: int, total: int = 10) -> Progress:
    return Progress("load", "layers 0-9", done, total, "layers")


def test_amounts_have_fitting_units() -> None:
    assert amount(12_300_000, 30_100_000, "bytes") == "12.3 of 30.1 MB"
    assert amount(5, 900, "bytes") == "5 of 900 B"
    assert amount(2_000_000_000, 0, "bytes") == "2.0 GB"
    assert amount(4, 30, "layers") == "4 of 30 layers"


def test_a_pipe_gets_first_last_and_a_few_between() -> None:
    lines = PlainLines(every_s=5)
    told = [lines.line(load(done), now=float(done)) for done in range(11)]
    assert [i for i, line in enumerate(told) if line] == [0, 5, 10]
    assert told[5] == "load layers 0-9: 5 of 10 layers (50%)"


def test_steps_side_by_side_do_not_hide_each_other() -> None:
    lines = PlainLines(every_s=5)
    assert lines.line(Progress("download", "a", 1, 9), 0.0) and lines.line(Progress("download", "b", 1, 9), 0.0)


def test_a_step_that_comes_again_is_told_again() -> None:
    lines = PlainLines(every_s=1e9)
    assert lines.line(load(10), 0.0) and lines.line(load(1), 0.0)


def test_notices_always_pass() -> None:
    assert PlainLines().line(Notice("layers 3-4 missing"), 0.0) == "layers 3-4 missing"
    assert PlainLines().line(Notice("clock is off", "warning"), 0.0) == "warning: clock is off"


def test_json_lines_are_whole_events() -> None:
    lines = JsonLines(every_s=1)
    line = lines.line(load(1), 0.0)
    assert line is not None and json.loads(line) == {
        "event": "progress",
        "step": "load",
        "what": "layers 0-9",
        "done": 1,
        "total": 10,
        "unit": "layers",
    }
    assert lines.line(load(2), 0.5) is None
    notice = lines.line(Notice("a\nb"), 0.5)
    assert notice is not None and "\n" not in notice


def test_the_reporter_writes_from_many_threads_in_whole_lines() -> None:
    out = io.StringIO()
    with reporter(json_lines=True, out=out) as report:
        threads = [
            threading.Thread(target=lambda i=i: [report(Notice(f"{i}-{k}")) for k in range(50)])  # type: ignore[misc]
            for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    texts = {json.loads(line)["text"] for line in out.getvalue().splitlines()}
    assert texts == {f"{i}-{k}" for i in range(8) for k in range(50)}


def test_a_pipe_has_no_escape_codes() -> None:
    out = io.StringIO()
    with reporter(json_lines=False, out=out) as report:
        report(load(3))
        report(Notice("[bold]not markup[/bold]"))
    assert out.getvalue() == "load layers 0-9: 3 of 10 layers (30%)\n[bold]not markup[/bold]\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_bars_and_notices_as_they_are() -> None:
    out = Terminal()
    with reporter(json_lines=False, out=out) as report:
        report(load(3))
        report(Notice("[red]3 nodes"))
        report(load(10))
    text = out.getvalue()
    assert "[red]3 nodes" in text and "3 of 10 layers" in text


def test_the_log_keeps_open_steps_and_last_notices() -> None:
    log = EventLog()
    seen: list[Event] = []
    report = tee(log.report, seen.append)
    for i in range(30):
        report(Notice(str(i)))
    report(load(3))
    report(Progress("probe", "cpu", 1, 1, "runs"))
    state = log.as_json()
    assert [step["done"] for step in state["steps"]] == [3] and state["notices"][-1]["text"] == "29"
    assert len(state["notices"]) == 20 and len(seen) == 32
    report(load(10))
    assert log.as_json()["steps"] == []
