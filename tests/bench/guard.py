"""What looking at a block costs while it is loaded: `python -m tests.bench.guard`.

SmolLM2, and a model of eight layers of width 2048 with random weights. Processor time of the process with one thread,
medians of three loads, so that other load matters little; shares are of a whole load, looks included.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swarm.model import block as loading
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.store import DEFAULT_MODEL, ModelStore

LOOKS = ("check_cut", "stands_against")
LOADS = 3


def main() -> None:
    torch.set_num_threads(1)
    store = ModelStore(platformdirs.user_cache_path("wanswarm") / "models")
    measure("SmolLM2", store.open(DEFAULT_MODEL), ((10, 20), (0, 30)))
    with tempfile.TemporaryDirectory() as folder:
        wide = LlamaConfig(
            hidden_size=2048, intermediate_size=5632, num_hidden_layers=8, num_attention_heads=32,
            num_key_value_heads=8, vocab_size=32000,
        )  # fmt: skip
        LlamaForCausalLM._from_config(wide, dtype=torch.bfloat16).save_pretrained(Path(folder) / "wide")
        measure("width 2048", ModelStore(Path(folder) / "store").open(str(Path(folder) / "wide")), ((2, 6), (0, 8)))


def measure(name: str, checkpoint: Checkpoint, ranges: tuple[tuple[int, int], ...]) -> None:
    spent: dict[str, list[float]] = {}
    usual = {look: getattr(loading, look) for look in LOOKS}
    for look, call in usual.items():
        setattr(loading, look, _timed(call, spent.setdefault(look, [])))
    try:
        for dtype in (torch.float32, torch.bfloat16):
            for first, last in ranges:
                whole: list[float] = []
                load = _timed(loading.load_block, whole)
                for _ in range(LOADS):
                    load(checkpoint, first, last, torch.device("cpu"), dtype)
                total = statistics.median(whole)
                cut, exact = (statistics.median(spent[look]) for look in LOOKS)
                kind = str(dtype).removeprefix("torch.")
                looks = f"cut {cut * 1e3:.0f} ms ({cut / total:.1%}), rows {exact * 1e3:.0f} ms ({exact / total:.1%})"
                print(f"{name} {first}:{last} {kind}: load {total:.2f} s, {looks}")
                for times in spent.values():
                    times.clear()
    finally:
        for look, call in usual.items():
            setattr(loading, look, call)


def _timed(call: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    def timed(*given: Any, **named: Any) -> Any:
        start = time.process_time()
        try:
            return call(*given, **named)
        finally:
            times.append(time.process_time() - start)

    return timed


if __name__ == "__main__":
    main()
