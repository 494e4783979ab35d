"""The whole sweep, and `docs/models.md` from it: `python -m tests.models [CASE ...]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from tests.models.configs import VARIANTS, all_types
from tests.models.sweep import sweep


def main(chosen: list[str]) -> int:
    torch.set_num_threads(1)
    faults = 0
    for case in chosen or [*all_types(), *VARIANTS]:
        for dtype in (torch.float32, torch.bfloat16):
            with tempfile.TemporaryDirectory() as folder:
                found = sweep(case, Path(folder), dtype)
            print(case, str(dtype)[6:], found.verdict, found.reason, sep="\t", flush=True)
            faults += found.verdict in ("wrong", "crash")
            if found.verdict != "exact":
                break
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
