"""Whether Freivalds' check makes an audit of weights as stored cheaper than computing it again, and by how much not.

python -m tests.bench.freivalds [--outputs 1536] [--columns 576] [--rows 1 16 64] [--rounds 9]

A product with a Q4_1 matrix is, block by block of 32 columns, a sum of whole numbers (4 bits times 8), and those sums
times scales are added up in floating point. Freivalds (1977) checks whole-number products without making them: with
random numbers r for the outputs, r W is made once, and then a row costs r . A = (r W) . x for its claimed sums A.
Numbers of 20 bits keep everything below 2^53, so float64 computes it exactly: a false sum passes once in 2^20.

Prints, by rows: milliseconds of the product by the kernels, of the check of claimed sums, of the floating-point part
that is left to be computed either way, and bytes of the sums that a node would have to send beside each row. Then how
many of 1,000 sums that are wrong by one were found.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from swarm.model.quant.formats import find_format
from swarm.model.quant.matrix import hold
from swarm.model.quant.native import library

BLOCK = 32
BITS = 20
"""Of the random numbers: 15 x 127 x 32 x 2^20 x 4096 outputs is below 2^53."""


def sums_of(weights: NDArray[np.int32], rows: NDArray[np.int32]) -> NDArray[np.int32]:
    """[rows, blocks, outputs]: whole-number sums of every block."""
    parts = weights.reshape(len(weights), -1, BLOCK)
    return np.einsum("obk,rbk->rbo", parts, rows.reshape(len(rows), -1, BLOCK), optimize=True).astype(np.int32)


def folded(weights: NDArray[np.int32], numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """r W: [columns], made once for all rows."""
    return numbers @ weights.astype(np.float64)


def right(
    sums: NDArray[np.int32], rows: NDArray[np.int32], numbers: NDArray[np.float64], fold: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """[rows, blocks]: does r . A equal (r W) . x?"""
    claimed = sums.astype(np.float64) @ numbers
    wanted = (fold * rows).reshape(len(rows), -1, BLOCK).sum(-1)
    return claimed == wanted  # type: ignore[no-any-return]


def median_ms(work: Callable[[], object], rounds: int) -> float:
    spent = []
    for _ in range(rounds + 1):
        begun = time.process_time()
        work()
        spent.append((time.process_time() - begun) * 1e3)
    return statistics.median(spent[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=int, default=1536)
    parser.add_argument("--columns", type=int, default=576)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    source = np.random.default_rng(1)
    weights = source.integers(0, 16, (asked.outputs, asked.columns), np.int32)
    numbers = source.integers(0, 1 << BITS, asked.outputs).astype(np.float64)
    form, lib = find_format("gguf:Q4_1"), library()
    assert form is not None and lib is not None
    stored = gguf.quantize((weights / 100).astype(np.float32), gguf.GGMLQuantizationType.Q4_1)
    matrix = hold(stored, form, (asked.outputs, asked.columns), None, "weights", lib)
    assert matrix is not None
    fold = folded(weights, numbers)
    print(f"[{asked.outputs}, {asked.columns}], processor time of one thread, medians of {asked.rounds}")
    print(f"r W, once: {median_ms(lambda: folded(weights, numbers), asked.rounds):.2f} ms")
    for count in asked.rows:
        rows = source.integers(-127, 128, (count, asked.columns), np.int32)
        sums = sums_of(weights, rows)
        scales = source.random((1, sums.shape[1], asked.outputs), np.float32)
        given = torch.randn(count, asked.columns).bfloat16()
        product = median_ms(lambda given=given: matrix.product(given, None), asked.rounds)  # type: ignore[misc]
        check = median_ms(lambda s=sums, x=rows: right(s, x, numbers, fold), asked.rounds)  # type: ignore[misc]
        floats = median_ms(lambda s=sums, w=scales: (s * w).sum(1), asked.rounds)  # type: ignore[misc]
        assert right(sums, rows, numbers, fold).all()
        print(
            f"{count:4} rows: product {product:.2f} ms, check {check:.2f} ms ({check / product:.1f} of it), scales "
            f"{floats:.2f} ms; sums {sums[0].nbytes} bytes a row, the row itself {2 * asked.outputs}"
        )
    rows = source.integers(-127, 128, (1, asked.columns), np.int32)
    sums, caught = sums_of(weights, rows), 0
    for _ in range(1000):
        false = sums.copy()
        false[0, source.integers(sums.shape[1]), source.integers(asked.outputs)] += source.choice((-1, 1))
        caught += not right(false, rows, numbers, fold).all()
    print(f"{caught} of 1000 sums that are wrong by one were found")


if __name__ == "__main__":
    main()
