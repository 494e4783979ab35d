"""Hours of churn with a report: python -m tests.soak --hours 10 [--state FOLDER] [--report].

Cut off, it goes on where it was when it is started again on the same folder: with processes of its own, for the time
that is left. The report is printed at the end and lies in the folder as report.md, renewed at every look. Exit code 0:
no wrong token, no receipt refused, nothing broken, and nobody grew by more than --most-mb-min after the first half.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

from tests.bench.heal import make_model
from tests.soak.churn import Churn, churned
from tests.soak.footprint import slope
from tests.soak.ledger import MB, SETTLED, Ledger, Part, report, seconds, summed

LEAST_S = 30.0
"""What is left below this is not worth a start."""
TRIES = 20
"""Parts that break off by a fault of the soak itself before it gives up."""
PAUSE_S = 10.0


def main() -> int:
    """Run, or go on, and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--state", type=Path, default=Path("build/soak"))
    parser.add_argument("--pause", type=float, default=8.0, help="mean seconds between two blows")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two looks")
    parser.add_argument("--most-mb-min", type=float, default=0.1, help="most MB a minute that a process may grow by")
    parser.add_argument("--report", action="store_true", help="print what there is, and run nothing")
    given = parser.parse_args()
    given.state.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(given.state / "soak.jsonl")
    broke = 0
    while not given.report and (left := given.hours * 3600 - seconds(ledger.parts())) > LEAST_S and broke < TRIES:
        broke += not _part(ledger, given, left)
    parts = ledger.parts()
    (given.state / "report.md").write_text(report(parts) + "\n")
    print(report(parts))
    return 0 if good(parts, given.most_mb_min) and broke < TRIES else 1


def _part(ledger: Ledger, given: argparse.Namespace, left: float) -> bool:
    """One start for the time that is left. Whether it came to its end."""
    number = len(ledger.parts()) + 1
    state = given.state / f"part-{number}"
    state.mkdir(parents=True, exist_ok=True)
    seed = int(time.time())
    ledger.note("begin", part=number, at=time.strftime("%FT%TZ", time.gmtime()), seed=seed, commit=_commit(),
                cores=os.cpu_count(), seconds=left)  # fmt: skip
    told = 0

    def look(spent: float, churn: Churn) -> None:
        nonlocal told
        ledger.look(spent, churn, os.getloadavg()[0])
        for text in churn.told[told:]:
            ledger.note("fault", text=text)
        told = len(churn.told)
        (given.state / "report.md").write_text(report(ledger.parts()) + "\n")

    try:
        model = make_model(state / "model", layers=6)
        churn = asyncio.run(churned(model, state, left, seed, given.pause, given.every, look, through_gateway=True))
        look(churn.sizes[-1][0], churn)
    except KeyboardInterrupt:
        ledger.note("end", why="ended by hand")
        raise
    except Exception:
        text = traceback.format_exc()
        print(text, file=sys.stderr)
        ledger.note("fault", text=f"the soak itself: {text[-3000:]}")
        ledger.note("end", why="broke off")
        time.sleep(PAUSE_S)
        return False
    ledger.note("end", why="ran to its end")
    return True


def good(parts: list[Part], most_mb_min: float) -> bool:
    """Whether nothing happened that must not, and nobody grew for long."""
    faults = sum(summed(parts, asker).faults for asker in ("ring", "http")) + sum(len(part.faults) for part in parts)
    last = max(parts, key=lambda part: part.seconds, default=None)
    if last is None or faults:
        return False
    late = SETTLED * last.seconds
    rises = [
        slope([(at, size.anonymous / MB) for at, size in last.sizes(name) if at >= late])
        for name in last.looks[-1]["sizes"]
    ]
    return all(rise <= most_mb_min for rise in rises)


def _commit() -> str:
    found = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True)
    return found.stdout.strip() or "?"


if __name__ == "__main__":
    sys.exit(main())
