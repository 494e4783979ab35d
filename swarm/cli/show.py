"""`swarm show`: a run over time, from its receipt."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from receipts.check.timeline import svg_timeline, text_timeline, timeline
from receipts.check.verify import verify
from receipts.format.errors import printable
from swarm.cli.common import add_state_option, say, state_dir
from swarm.cli.verify import last_receipt, read_receipt, write_drawing


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "show",
        help="draw a run over time, from its receipt",
        description="Draw a run over time: who was in the ring when, how much each node computed, what was lost and "
        "when the first token came. A receipt that swarm verify refuses is not drawn; its exit code comes instead.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "receipt",
        type=Path,
        nargs="?",
        metavar="RECEIPT",
        help="the receipt file, or - for stdin (default: the last one that a run of this machine left)",
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the drawing to FILE instead")
    add_state_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Draw one receipt."""
    path = arguments.receipt
    if path is None:
        path = last_receipt(state_dir(arguments) / "receipts")
        say(f"the last receipt here: {path}")
    verdict = verify(read_receipt(path))
    if verdict.run is None or verdict.refusal is not None:
        print(f"swarm: not drawn, since it is refused: {printable(verdict.line)}", file=sys.stderr)
        return verdict.exit_code
    line = timeline(verdict.run)
    if arguments.svg is not None:
        write_drawing(arguments.svg, svg_timeline(line, f"{verdict.run.order.model.name}: {verdict.line}"))
        return 0
    width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
    print(text_timeline(line, width), end="")
    return 0
