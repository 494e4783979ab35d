"""The experts of one layer, as stored against expanded to bfloat16, by rows.

python -m tests.bench.experts [--experts 64] [--chosen 8] [--hidden 2048] [--inner 768] [--kind Q4_K]

Random weights and routes, one thread unless told; the two take turns, medians of processor time, in milliseconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from swarm.model.quant.experts import PackedExperts, Stack
from swarm.model.quant.matrix import dense, hold
from swarm.model.quant.native import library
from tests.swarm.model.test_quant import blocks, form_of

ROWS = (1, 2, 4, 8, 16, 64, 512)


def pair(experts: int, chosen: int, hidden: int, inner: int, kind: str) -> tuple[PackedExperts, Qwen3MoeExperts]:
    """The same experts both ways."""
    config = Qwen3MoeConfig(
        hidden_size=hidden, moe_intermediate_size=inner, num_experts=experts, num_experts_per_tok=chosen
    )
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        plain = Qwen3MoeExperts(config).to(torch.bfloat16)
    form, lib = form_of(kind), library()

    def stack(rows: int, columns: int) -> Stack:
        one = blocks(form, rows, columns)
        return Stack((tuple(hold(one, form, (rows, columns), None, "m", lib) for _ in range(experts)),))

    first, second = stack(2 * inner, hidden), stack(hidden, inner)
    packed = PackedExperts(plain, {"gate_up_proj": first, "down_proj": second})
    for name, made in (("gate_up_proj", first), ("down_proj", second)):
        whole = torch.stack([dense(matrix, torch.bfloat16) for matrix in made.parts[0]])
        setattr(plain, name, torch.nn.Parameter(whole, requires_grad=False))
    return packed, plain


def spent(run: Callable[[], object]) -> float:
    begun = time.process_time()
    run()
    return (time.process_time() - begun) * 1000.0


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("experts", 64), ("chosen", 8), ("hidden", 2048), ("inner", 768), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--kind", default="Q4_K")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    packed, plain = pair(given.experts, given.chosen, given.hidden, given.inner, given.kind)
    print(f"held {sum(s.nbytes for s in packed.stacks.values()) / 1e6:.0f} MB as stored", flush=True)
    for rows in ROWS:
        turns = 15 if rows <= 64 else 5
        x = torch.randn(rows, given.hidden, dtype=torch.bfloat16)
        found: dict[str, list[float]] = {"stored": [], "expanded": []}
        for _ in range(turns):
            routes = torch.rand(rows, given.experts).topk(given.chosen).indices  # other experts every time
            shares = torch.full((rows, given.chosen), 1 / given.chosen)
            found["stored"].append(spent(partial(packed, x, routes, shares)))
            found["expanded"].append(spent(partial(plain, x, routes, shares)))
        a, b = median(found["stored"]), median(found["expanded"])
        print(f"{rows:4} rows: as stored {a:8.2f} ms, expanded {b:8.2f} ms, {b / a:.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()
