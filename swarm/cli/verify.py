"""`swarm verify`: what a receipt proves."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from receipts.report import text_report
from receipts.verify import Options, verify
from swarm.errors import UsageError

EXIT_UNREADABLE = 2


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "verify",
        help="what a receipt proves",
        description="Check a receipt and say of each claim whether it is proven, co-signed, witnessed, claimed or not "
        "checked. Exit code 0: met; 2: unreadable or misuse; 3: authentic but below the required level; 4: the replay "
        "was not conclusive; 10 and above: refused, one code for each reason.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("receipt", type=Path, metavar="RECEIPT", help="the receipt file")
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")


def read_receipt(path: Path) -> bytes:
    """The bytes of a receipt. Raises UsageError (exit code 2) when there are none."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the receipt {path}: {error.strerror}") from error


def verify_file(path: Path, show: Callable[[str], None] = print, options: Options | None = None) -> int:
    """Verify and print. Returns the exit code."""
    verdict = verify(read_receipt(path), options)
    width = shutil.get_terminal_size((100, 24)).columns if sys.stderr.isatty() or sys.stdout.isatty() else 100
    show(text_report(verdict, width))
    return verdict.exit_code


def run(arguments: argparse.Namespace) -> int:
    """Check one file."""
    if not arguments.json:
        return verify_file(arguments.receipt)
    verdict = verify(read_receipt(arguments.receipt))
    print(json.dumps(verdict.as_json()))
    return verdict.exit_code
