"""Log lines of long commands: which are shown, and their two forms."""

from __future__ import annotations

import io
import json
import logging

from swarm.base.events import Event, Notice
from swarm.cli.logs import LogConfig, logging_to


def test_lines_go_among_the_notices_from_the_level_on() -> None:
    seen: list[Event] = []
    log = logging.getLogger("swarm.node.somewhere")
    with logging_to(seen.append, LogConfig("info")):
        log.debug("too fine")
        log.info("node %s joined", "aa")
        log.warning("that is odd")
    log.warning("after the end")
    assert [(event.text[9:], event.level) for event in seen if isinstance(event, Notice)] == [
        ("node aa joined", "info"),
        ("that is odd", "warning"),
    ]


def test_json_lines_hold_the_traceback_of_a_fault() -> None:
    out = io.StringIO()
    with logging_to(lambda event: None, LogConfig("warning", as_json=True), out):
        try:
            raise ValueError("inside")
        except ValueError:
            logging.getLogger("receipts").exception("it broke")
    line = json.loads(out.getvalue())
    assert line["level"] == "error" and line["from"] == "receipts" and "ValueError: inside" in line["text"]
