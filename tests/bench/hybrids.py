"""What trees cost a hybrid, and its recurrent layers beside transformers' own chunked form.

    python -m tests.bench.hybrids

One thread, medium random models of 4 layers (3 recurrent, 1 full), float32. All ratios are of medians within one run,
the two sides taking turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import CONFIG_MAPPING, DynamicCache

from swarm.model.block import Block, Job, load_block
from swarm.model.files.store import ModelStore
from swarm.model.kvcache import KVPool
from swarm.model.rows import Layout, no_commits
from tests.swarm.model.tiny import CPU, certain, drafted

_BASE: dict[str, Any] = {
    "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 4096, "pad_token_id": 0,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_LINEAR = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_next": {
        "head_dim": 64, "linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "mlp_only_layers": [0, 1, 2, 3], "layer_types": _LINEAR,
    },
    "granitemoehybrid": {
        "shared_intermediate_size": 1024, "num_local_experts": 0, "mamba_n_heads": 16, "mamba_d_head": 64,
        "mamba_d_state": 128, "mamba_n_groups": 1, "mamba_expand": 2, "layer_types": _LINEAR,
    },
    "lfm2": {"layer_types": ["conv", "conv", "conv", "full_attention"]},
}  # fmt: skip
LAYOUT = Layout(scratch=64, context=4096)
CONTEXT, TURNS = 2000, 25


def main() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    print("| model | 1 row, ms | 16 tree rows, ms | ratio | layer, 64 rows, ms | transformers', ms | speed |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind, values in MODELS.items():
        torch.manual_seed(0)
        config = CONFIG_MAPPING[kind](**_BASE, **values)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(f"{folder}/model")
            checkpoint = ModelStore(Path(folder) / "store").open(f"{folder}/model", (0, 4))
            block = load_block(checkpoint, 0, 4, CPU, torch.float32)
        one, tree = _tree(block)
        cells = [f"{one:.1f}", f"{tree:.1f}", f"{tree / one:.2f}"]
        if kind != "lfm2":
            ours, theirs = _layer(block, model)
            cells += [f"{ours:.1f}", f"{theirs:.1f}", f"{theirs / ours:.2f}"]
        print("|", " | ".join([kind, *cells, *[""] * (6 - len(cells))]), "|", flush=True)


def _tree(block: Block) -> tuple[float, float]:
    """Milliseconds of one row and of 16 rows of a tree behind CONTEXT tokens."""
    kv = KVPool(block, 1 << 40).open(LAYOUT, block.first, block.last)
    tokens = np.random.default_rng(0).integers(3, 999, CONTEXT + 16).tolist()
    for i in range(0, CONTEXT, 250):
        block.forward([Job(kv, no_commits(), certain(tokens[i : i + 250], i, LAYOUT, False), None)])
    parents = [-1, *[i // 2 for i in range(15)]]
    one = drafted(tokens[CONTEXT : CONTEXT + 1], [-1], [63], CONTEXT, LAYOUT)
    tree = drafted(tokens[CONTEXT:], parents, list(range(63, 47, -1)), CONTEXT, LAYOUT)
    return _turns(*(lambda rows=rows: block.forward([Job(kv, no_commits(), rows, None)]) for rows in (one, tree)))


def _layer(block: Block, model: Any) -> tuple[float, float]:
    """Milliseconds of 64 rows that go on a text, through one recurrent layer: ours and transformers' with its cache."""
    view, layer = block.view(1, 2), model.model.layers[1]
    kv, cache = KVPool(view, 1 << 40).open(LAYOUT, 1, 2), DynamicCache(config=model.config)
    hidden = torch.randn(64, view.hidden_size)
    start = iter(range(0, 64 * (TURNS + 5), 64))

    def ours() -> None:
        view.forward([Job(kv, no_commits(), certain([5] * 64, next(start), LAYOUT, False), hidden)])

    def theirs() -> None:
        with torch.inference_mode():
            layer(hidden[None], attention_mask=None, past_key_values=cache, position_embeddings=None)

    return _turns(ours, theirs)


def _turns(*calls: Callable[[], Any]) -> tuple[float, float]:
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(TURNS + 3):
        for call, spent in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            spent.append((time.perf_counter() - start) * 1e3)
    first, second = (statistics.median(spent[3:]) for spent in times)
    return first, second


if __name__ == "__main__":
    main()
