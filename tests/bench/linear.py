"""The matrices of SmolLM2-135M's layers times some rows: plain linear layers against blocked ones, on one thread.

python -m tests.bench.linear [--layers 15] [--rows 1 2 8 32 256]

Milliseconds for all matrices of so many layers, the first quartile of several runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

from swarm.model.blocked import BlockedLinear

SHAPES = [(576, 1536)] * 2 + [(1536, 576)] + [(576, 576)] * 2 + [(576, 192)] * 2


def quartile_ms(work: Callable[[], object], times: int = 8) -> float:
    spent = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        spent.append((time.perf_counter() - start) * 1000.0)
    return sorted(spent[1:])[times // 4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 8, 32, 256])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.bfloat16):
        plain = [nn.Linear(i, o, bias=False, dtype=dtype) for _ in range(arguments.layers) for i, o in SHAPES]
        kinds = {"plain": plain, "blocked": [BlockedLinear(layer.requires_grad_(False)) for layer in plain]}
        for rows in arguments.rows:
            x = {i: torch.randn(1, rows, i, dtype=dtype) for i in (576, 1536)}
            with torch.inference_mode():
                spent = {
                    name: quartile_ms(lambda layers=layers, x=x: [m(x[m.in_features]) for m in layers])  # type: ignore[misc]
                    for name, layers in kinds.items()
                }
            told = "   ".join(f"{name} {ms:6.1f} ms" for name, ms in spent.items())
            print(f"{str(dtype).removeprefix('torch.'):9} {rows:4} rows   {told}", flush=True)


if __name__ == "__main__":
    main()
