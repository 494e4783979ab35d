"""The whole sweep, and `docs/models.md` from it: `python -m tests.models [--write] [CASE ...]`."""

from __future__ import annotations

import argparse
import datetime
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.models.configs import VARIANTS, all_types, class_name
from tests.models.sweep import CRASH, EXACT, WRONG, Found, drafting, sweep
from tests.models.table import DOC, dated, rows, table

DEADLINE_S = 120
"""Of one case; what takes longer counts as crashed."""


def both(case: str) -> Found:
    """The case in float32 and, where that is exact, in bfloat16."""
    found = Found(case, class_name(case), CRASH, "not tried")
    for dtype in (torch.float32, torch.bfloat16):
        with tempfile.TemporaryDirectory() as folder:
            found = sweep(case, Path(folder), dtype)
        if found.verdict != EXACT:
            reason = found.reason if dtype == torch.float32 else f"bfloat16: {found.reason}"
            return Found(case, found.name, found.verdict, reason)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.models", description=__doc__)
    parser.add_argument("cases", nargs="*", help="model types or variants (default: all)")
    parser.add_argument("--write", action="store_true", help=f"write {DOC}; of CASES only their rows")
    parser.add_argument("--drafters", action="store_true", help=f"look again at what drafts, for all of {DOC.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.drafters:
        before = rows(DOC.read_text())
        DOC.write_text(table([_drafted(f, arguments.cases) if f.verdict == EXACT else f for f in before]))
        return 0
    found: list[Found] = []
    signal.signal(signal.SIGALRM, _late)
    for case in arguments.cases or [*all_types(), *VARIANTS]:
        signal.alarm(DEADLINE_S)
        one = both(case)
        signal.alarm(0)
        found.append(one)
        print(one.case, one.name, one.verdict, one.reason, sep="\t", flush=True)
    if arguments.write:
        before, again = rows(DOC.read_text()), {f.case for f in found}
        kept = [f for f in before if f.case not in again] if arguments.cases else []
        DOC.write_text(table([*kept, *dated(found, before, datetime.date.today().isoformat())]))
    return int(any(f.verdict in (WRONG, CRASH) for f in found))


def _drafted(found: Found, cases: list[str]) -> Found:
    if cases and found.case not in cases:
        return found
    with tempfile.TemporaryDirectory() as folder:
        one = replace(found, drafts=drafting(found.case, Path(folder)))
    print(one.case, one.drafts, sep="\t", flush=True)
    return one


def _late(*_: Any) -> None:
    raise TimeoutError(f"no answer within {DEADLINE_S} s")


if __name__ == "__main__":
    sys.exit(main())
