"""`swarm show`: a run over time, from its receipt."""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from receipts.check.timeline import text_timeline, timeline
from receipts.check.verify import verify
from receipts.format.errors import printable
from swarm.base.config import MemberConfig
from swarm.base.option import build, like, option
from swarm.base.paths import stream_to_write
from swarm.cli.common import say, state_dir
from swarm.cli.parser import Parser
from swarm.cli.verify import STDIN, VerifyOptions, read_receipt, write_drawing
from swarm.run.last_receipt import last_receipt
from swarm.run.trace import read_trace
from swarm.run.trace_draw import svg_run, told, trace_text


@dataclass(frozen=True)
class ShowOptions:
    """Which run, and where the drawing goes."""

    receipt: Path | None = like(VerifyOptions, "receipt")
    svg: Path | None = option(None, "write the drawing to FILE instead", "FILE", read=stream_to_write)


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = (
        "Draw a run over time: who was in the ring when, how much each node computed, what was lost and when the first "
        "token came. Where the requester's own trace lies beside the receipt (RECEIPT.trace.json), also its passes in "
        "flight, which drafted rows were right, and each recovery step by step; no receipt holds those. A receipt that "
        "swarm verify refuses is not drawn; its exit code comes instead."
    )
    parser.declare(ShowOptions)
    parser.declare(MemberConfig, "state")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw one receipt."""
    options = build(ShowOptions, vars(arguments))
    path = options.receipt
    if path is None:
        path = last_receipt(state_dir(arguments) / "receipts")
        say(f"the last receipt here: {path}")
    verdict = verify(read_receipt(path))
    if verdict.run is None or verdict.refusal is not None:
        print(f"swarm: not drawn, since it is refused: {printable(verdict.line)}", file=sys.stderr)
        return verdict.exit_code
    of = told(verdict.run, None if path == STDIN else read_trace(path))
    if options.svg is not None:
        write_drawing(options.svg, svg_run(of, f"{verdict.run.order.model.name}: {verdict.line}"))
        return 0
    width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
    print(text_timeline(timeline(verdict.run), width))
    print(trace_text(of, width), end="")
    return 0
