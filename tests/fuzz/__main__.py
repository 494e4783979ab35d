"""Coverage-guided fuzzing of one target, with atheris: `python -m tests.fuzz TARGET --seconds 60`.

Ends with code 0 when nothing was found; atheris prints and keeps what crashed, hung over a second or took over 512 MB
more. Needs the extra `fuzz`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["swarm", "receipts", "msgpack"]):
    from tests.fuzz.targets import targets


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=targets())
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", type=Path, help="folder for what was found (default: a temporary one)")
    args = parser.parse_args()
    target = targets()[args.target]

    def one(data: bytes) -> None:
        try:
            target.run(data)
        except target.refusal:
            pass

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / f"seed{number}").write_bytes(seed)
        keep = args.keep or Path(corpus)
        words = [f"-max_total_time={args.seconds}", "-timeout=1", "-rss_limit_mb=2048", f"-artifact_prefix={keep}/"]
        atheris.Setup([sys.argv[0], *words, corpus], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
