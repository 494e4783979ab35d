"""`python -m receipts FILE...`: what receipts prove, with nothing but this package and PyNaCl."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Check every file and print its report. Returns the highest exit code (docs/receipts.md), 2 for misuse."""
    parser = argparse.ArgumentParser(
        prog="wanswarm-verify",
        description="Check receipts of wanswarm at the levels that need neither the model nor its nodes. Exit code 0: "
        "met; 2: unreadable; 3: below the required level; 10 and above: refused.",
    )
    parser.add_argument("receipts", nargs="+", metavar="RECEIPT", help="a receipt file, or - for stdin")
    parser.add_argument(
        "--trust", type=Path, metavar="FILE", help="refuse keys that are not in FILE, one in hex a line"
    )
    parser.add_argument("--require-level", type=int, choices=range(5), default=1, help="exit with 3 below it")
    parser.add_argument("--json", action="store_true", help="print each verdict as one line of JSON")
    arguments = parser.parse_args(argv)

    from receipts.check.report import text_report
    from receipts.check.verdict import Level
    from receipts.check.verify import Options, trust_untrusted, verify
    from receipts.format.errors import ReceiptError

    worst = 0
    try:
        trust = None if arguments.trust is None else trust_untrusted(arguments.trust.read_text("utf-8"))
        options = Options(required=Level(arguments.require_level), trust=trust)
        for name in arguments.receipts:
            verdict = verify(_read(name), options)
            width = shutil.get_terminal_size((100, 24)).columns
            _print(json.dumps(verdict.as_json()) if arguments.json else text_report(verdict, width))
            worst = max(worst, verdict.exit_code)
    except (OSError, UnicodeDecodeError, ReceiptError) as error:
        why = error.strerror if isinstance(error, OSError) and error.filename is None else error
        print(f"wanswarm-verify: {why}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("wanswarm-verify: interrupted", file=sys.stderr)
        return 130
    return worst


def _read(name: str) -> bytes:
    """The bytes of a file, or of stdin; none where stdin was closed."""
    if name != "-":
        return Path(name).read_bytes()
    return b"" if sys.stdin is None else sys.stdin.buffer.read()


def _print(text: str) -> None:
    """A report that nobody gets is no success. Raises OSError, after which nothing is tried again at the end."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "cannot write the report: the output is closed")
    try:
        print(text, flush=True)
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, f"cannot write the report: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
