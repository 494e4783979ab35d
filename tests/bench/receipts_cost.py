"""What receipts cost: signing, hashing, closing a ring, verifying. Run: python -m tests.bench.receipts_cost [--json]

Processor time of this process, best of several rounds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

from receipts.check.verify import verify
from receipts.format.closing import Witness
from receipts.format.document import document_untrusted
from receipts.record.edge import EdgeLog
from receipts.record.tail import TailLog
from tests.receipts.conftest import Party, run_ring

SALT = bytes(32)


def best(action: Callable[[], object], count: int, rounds: int = 5) -> float:
    """Least microseconds of processor time of one action."""
    least = float("inf")
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(count):
            action()
        least = min(least, (time.process_time() - started) / count)
    return least * 1e6


def hash_frame(rows: int, row_bytes: int) -> float:
    """One frame at one end of an edge, hashed at once."""
    log = EdgeLog(0, "sender", "aa", "bb", SALT)
    head, body = bytes(200), bytes(rows * row_bytes)
    return best(lambda: log.frame(1, head, body), 200)


def tail_row() -> float:
    log = TailLog()

    def one() -> None:
        log.answered(5, 7, 1.5, 3, 10)
        log.committed(3, 4)

    return best(one, 2000)


def measure() -> dict[str, float]:
    author = Party("bench").author
    ring = run_ring(tokens=list(range(64)), witnesses=1)
    envelopes = document_untrusted(ring.receipt).envelopes
    run = author.begin_run()
    return {
        "issue_statement_us": best(lambda: author.issue(run, {"order": "ab" * 32}, Witness("order", 1, 0, None)), 200),
        "check_signature_us": best(lambda: envelopes[0].check(), 200),
        "hash_frame_1_row_576_float32_us": hash_frame(1, 576 * 4),
        "hash_frame_16_rows_576_float32_us": hash_frame(16, 576 * 4),
        "hash_frame_64_rows_4096_bfloat16_us": hash_frame(64, 4096 * 2),
        "tail_row_us": tail_row(),
        "whole_run_3_stages_64_tokens_us": best(lambda: run_ring(tokens=list(range(64))), 1),
        "receipt_bytes": float(len(ring.receipt)),
        "verify_us": best(lambda: verify(ring.receipt), 10),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    found = measure()
    if parser.parse_args().json:
        print(json.dumps({name: round(value, 2) for name, value in found.items()}))
        return
    for name, value in found.items():
        print(f"{name:40} {value:12.1f}")


if __name__ == "__main__":
    main()
