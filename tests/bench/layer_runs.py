"""Passes of few rows, all layers in one call of the kernels against a call for each.

python -m tests.bench.layer_runs FILE.gguf [--turns 41] [--rows 1 4 16]

Both ways take turns in one process of one thread; processor time, medians of the turns and of their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from swarm.model import fused
from swarm.model.block import load_block
from swarm.model.files.store import ModelStore
from tests.bench.weights import passes_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--turns", type=int, default=41)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = ModelStore(Path(folder)).open(arguments.file, None)
        n = checkpoint.manifest.n_layers
        block = load_block(checkpoint, 0, n, torch.device("cpu"), torch.bfloat16, weights="auto")
    forward = passes_of(block, n, time.process_time)
    forward(0, 32, want_all=False)
    most = fused.MOST_AHEAD
    for rows in arguments.rows:
        pairs = []
        for turn in range(arguments.turns + 2):
            took = {}
            for ahead in (most, 0) if turn % 2 else (0, most):
                fused.MOST_AHEAD = ahead  # type: ignore[misc]
                took[ahead] = forward(32, rows, want_all=True)
            pairs.append((took[most], took[0]))
        pairs = pairs[2:]
        together, apart = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        print(
            f"{rows} rows: {together:.2f} ms together, {apart:.2f} ms layer by layer, {ratio:.3f} times as fast",
            flush=True,
        )


if __name__ == "__main__":
    main()
