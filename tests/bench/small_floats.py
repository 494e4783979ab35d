"""How long products with small floats take on a CPU, beside bfloat16 in order and Q8_0.

    python -m tests.bench.small_floats [--threads 1]

Least of 40 and median, milliseconds, of a matrix [8960, 1536] and bfloat16 rows; all kinds in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from swarm.model.quant.dense import dense_matrix
from swarm.model.quant.formats import blocks_format
from swarm.model.quant.matrix import Matrix, hold
from swarm.model.quant.native import library

SHAPE = (8960, 1536)
NAMES = ("FP8_E4M3", "NVFP4_ROWS", "MXFP4", "Q8_0")


def matrices() -> dict[str, Matrix]:
    """One of each kind."""
    lib, rng = library(), np.random.default_rng(0)
    assert lib is not None, "no kernels were built: install with a C++ compiler"
    found: dict[str, Matrix] = {}
    for name in NAMES:
        form = blocks_format(name)
        assert form is not None
        stored = rng.integers(0, 256, SHAPE[0] * SHAPE[1] // form.block * form.block_bytes, np.uint8)
        form.settle_scales(stored)
        found[name] = hold(stored, form, SHAPE, None, name, lib)
    plain = dense_matrix(torch.randn(SHAPE).bfloat16(), lib)
    assert plain is not None
    return found | {"BF16": plain}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    held = matrices()
    for rows in (1, 8, 64):
        x, times = torch.randn(rows, SHAPE[1]).bfloat16(), {name: list[float]() for name in held}
        for _ in range(40):
            for name, matrix in held.items():
                start = time.perf_counter()
                matrix.product(x, None)
                times[name].append((time.perf_counter() - start) * 1e3)
        said = "  ".join(f"{name} {min(each):.2f} ({statistics.median(each):.2f})" for name, each in times.items())
        print(f"{rows:3} rows  {said}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
