"""Coverage-guided fuzzing of one target, with atheris: `python -m tests.fuzz TARGET --seconds 60`.

Ends with code 0 when nothing was found; atheris prints and keeps what crashed, computed over a second or took over
2 GB. Needs the extra `fuzz`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["swarm", "receipts", "msgpack"]):
    from tests.fuzz.targets import targets

SECONDS = 1.0
"""A parser that computes longer than this on one input hangs. Of this thread's own time: it runs at the lowest
priority beside the tests, and a second of the clock may pass without it."""

STUCK_SECONDS = 60
"""By the clock: what waits for something that never comes, or never returns."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=targets())
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", type=Path, help="folder for what was found (default: a temporary one)")
    args = parser.parse_args()
    target = targets()[args.target]

    def one(data: bytes) -> None:
        begun = time.thread_time()
        try:
            target.run(data)
        except target.refusal:
            pass
        if (took := time.thread_time() - begun) > SECONDS:
            raise TimeoutError(f"computed for {took:.1f} s on {len(data)} bytes")

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / f"seed{number}").write_bytes(seed)
        keep = args.keep or Path(corpus)
        limits = [f"-timeout={STUCK_SECONDS}", "-rss_limit_mb=2048"]
        words = [f"-max_total_time={args.seconds}", *limits, f"-artifact_prefix={keep}/"]
        atheris.Setup([sys.argv[0], *words, corpus], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
