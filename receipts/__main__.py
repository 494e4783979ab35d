"""`python -m receipts FILE...`: what receipts prove, with nothing but this package and PyNaCl."""

from __future__ import annotations

import argparse
import json
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
        trust = None if arguments.trust is None else trust_untrusted(_read(str(arguments.trust)).decode("utf-8"))
        options = Options(required=Level(arguments.require_level), trust=trust)
        for name in arguments.receipts:
            verdict = verify(_read(name), options)
            width = shutil.get_terminal_size((100, 24)).columns
            print(json.dumps(verdict.as_json()) if arguments.json else text_report(verdict, width))
            worst = max(worst, verdict.exit_code)
    except UnicodeDecodeError:
        return _misused(f"expected keys in hex in {arguments.trust}, found no text in UTF-8")
    except (_Unread, ReceiptError) as error:
        return _misused(str(error))
    return worst


class _Unread(Exception):
    """A file cannot be read."""


def _read(name: str) -> bytes:
    """The bytes of a file, or of stdin for "-". Raises _Unread in words."""
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise _Unread(f"cannot read {name}: {error.strerror or error}; give the path of a file") from error


def _misused(why: str) -> int:
    print(f"wanswarm-verify: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
