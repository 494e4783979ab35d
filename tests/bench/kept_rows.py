"""What beginning, keeping and opening a run cost while 100,000 runs are kept already.

    python -m tests.bench.kept_rows [--runs 100000] [--folder DIR]

Runs are of real shape but small: four frames each way. The same is measured over an empty folder beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from receipts.format.merkle import leaf_hash
from receipts.record.row_opening import OpeningRequest
from receipts.record.rows import RowStore

LEAVES = (leaf_hash(bytes(32)), leaf_hash(bytes(32)))
HEAD, BODY = bytes(120), bytes(2304)


def name(number: int) -> str:
    """An order's digest."""
    return f"{number:064x}"


def fill(folder: Path, runs: int, now_s: int) -> None:
    """Runs as an earlier process left them."""
    store = RowStore(folder, max_bytes=1 << 40, max_runs=1 << 30)
    for number in range(runs):
        rows = store.begin(name(number), 0, LEAVES, now_s)
        rows.inbound(0, HEAD, BODY)
        rows.outbound(0, HEAD, BODY)
        rows.close()


def measure(folder: Path, now_s: int, first: int, count: int = 300) -> dict[str, float]:
    """Medians in milliseconds; `load` once."""
    began = time.perf_counter()
    store = RowStore(folder, max_bytes=1 << 40, max_runs=1 << 30)
    made_ms = 1e3 * (time.perf_counter() - began)
    store.used_bytes  # noqa: B018 - waits until the folder was read
    times: dict[str, list[float]] = {"begin": [], "first frame": [], "open one row": []}
    load_ms = 1e3 * (time.perf_counter() - began)
    for number in range(first, first + count):
        at = [time.perf_counter()]
        rows = store.begin(name(number), 0, LEAVES, now_s)
        at.append(time.perf_counter())
        rows.inbound(0, HEAD, BODY)
        at.append(time.perf_counter())
        rows.outbound(0, HEAD, BODY)
        rows.close()
        request = OpeningRequest(name(number), 0, (1,)).to_bytes()
        opening = time.perf_counter()
        store.answer(request).whole()
        times["begin"].append(at[1] - at[0])
        times["first frame"].append(at[2] - at[1])
        times["open one row"].append(time.perf_counter() - opening)
    medians = {what: 1e3 * statistics.median(found) for what, found in times.items()}
    return {"constructor": made_ms, "load (in its thread)": load_ms, **medians}


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    now_s = int(time.time())
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        full, empty = Path(folder) / "full", Path(folder) / "empty"
        fill(full, given.runs, now_s)
        found = [measure(empty, now_s, given.runs), measure(full, now_s, given.runs)]
        for what in found[0]:
            print(f"{what:24} {found[0][what]:10.3f} ms at 0 runs {found[1][what]:10.3f} ms at {given.runs} runs")


if __name__ == "__main__":
    main()
