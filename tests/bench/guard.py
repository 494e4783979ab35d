"""What looking at a cut costs: the share of a block's loading (`python -m tests.bench.guard`).

Measured in CPU time of the process with one thread, medians of three, so that other load matters little.
"""

from __future__ import annotations

import statistics
import time

import platformdirs
import torch

from swarm.model.block import load_block
from swarm.model.files.store import DEFAULT_MODEL, ModelStore
from swarm.model.guard import check_cut


def main() -> None:
    torch.set_num_threads(1)
    store = ModelStore(platformdirs.user_cache_path("wanswarm") / "models")
    checkpoint = store.open(DEFAULT_MODEL)
    for dtype in (torch.float32, torch.bfloat16):
        for first, last in ((10, 20), (0, 30)):
            loads, looks = [], []
            for _ in range(3):
                start = time.process_time()
                block = load_block(checkpoint, first, last, torch.device("cpu"), dtype)
                loads.append(time.process_time() - start)
                start = time.process_time()
                check_cut(block, "LlamaForCausalLM", block.loaded.positions)
                looks.append(time.process_time() - start)
            load, look = statistics.median(loads), statistics.median(looks)
            kind = str(dtype).removeprefix("torch.")
            print(f"{first}:{last} {kind}: load {load:.2f} s, guard {look * 1e3:.0f} ms, {look / load:.1%}")


if __name__ == "__main__":
    main()
