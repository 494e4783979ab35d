"""What rows whose bits do not depend on their company cost: the same model with the kernels of fixed order and without,
in turns, in one process.

python -m tests.bench.exact [--layers 6] [--dtype bfloat16] [--threads 2] [--prompt 2000] [--rounds 7]
    [--family qwen3_next]

With --family two layers of a random model of that kind instead of those of SmolLM2.

Medians of ratios, exact over not: milliseconds of passes of 1, 8 and 16 rows of one session behind 256 positions, of
eight sessions with one row each, and of a prompt in parts of 512.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from swarm.model.block import Block, load_block
from swarm.model.exact import why_not
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.job import Job
from swarm.model.kvcache import KVPool, SessionKV
from swarm.model.rows import Layout, no_commits
from swarm.ring.certain_rows import certain_rows
from tests.swarm.model.tiny import MemoryCheckpoint, random_model

BEHIND = 256


FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_next": {
        "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 128, "linear_num_key_heads": 8, "linear_num_value_heads": 16,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "num_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256, "vocab_size": 1000,
        "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
    },
    "mamba2": {
        "hidden_size": 1024, "num_hidden_layers": 4, "num_heads": 32, "head_dim": 64, "state_size": 128, "n_groups": 1,
        "vocab_size": 1000,
    },
    "mamba": {"hidden_size": 1024, "num_hidden_layers": 4, "state_size": 16, "vocab_size": 1000},
    "deepseek_v3": {
        "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 16,
        "num_key_value_heads": 16, "q_lora_rank": 384, "kv_lora_rank": 256, "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32, "v_head_dim": 64,
        "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "moe_intermediate_size": 512, "first_k_dense_replace": 2, "vocab_size": 1000,
    },
    "glm_moe_dsa": {
        "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 16,
        "num_key_value_heads": 16, "q_lora_rank": 384, "kv_lora_rank": 256, "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32, "v_head_dim": 64,
        "index_n_heads": 8, "index_head_dim": 64, "index_topk": 128, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 512,
        "first_k_dense_replace": 2, "vocab_size": 1000,
    },
    "diffllama": {
        "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 16,
        "num_key_value_heads": 4, "vocab_size": 1000,
    },
    "bloom": {"hidden_size": 1024, "n_layer": 4, "n_head": 16, "vocab_size": 1000},
}  # fmt: skip
"""Widths of real models of some 0.5 to 1 billion weights."""


def works(block: Block, prompt: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    layout, at = Layout(0, prompt + 8192), [BEHIND] * 8
    kvs = [KVPool(block, 1 << 40).open(layout, block.first, block.last) for _ in range(8)]
    source = torch.Generator().manual_seed(1)

    def job(kv: SessionKV, first: int, n: int) -> Job:
        hidden = torch.randn(n, block.hidden_size, generator=source).to(block.dtype)
        return Job(kv, no_commits(), certain_rows(layout, first, [1] * n), hidden)

    def further(session: int, n: int) -> Job:
        """Rows behind those before: a recurrent layer that was to go back would be timed for that."""
        at[session] += n
        return job(kvs[session], at[session] - n, n)

    def whole() -> None:
        kv = KVPool(block, 1 << 40).open(layout, block.first, block.last)
        for first in range(0, prompt, 512):
            block.forward([job(kv, first, min(512, prompt - first))])
        kv.close()

    for kv in kvs:
        block.forward([job(kv, 0, BEHIND)])
    found: dict[str, Callable[[], object]] = {
        f"{n} rows": lambda n=n: block.forward([further(0, n)])  # type: ignore[misc]
        for n in (1, 8, 16)
    }
    found["8 users"] = lambda: block.forward([further(session, 1) for session in range(8)])
    found["prompt"] = whole
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--family", choices=sorted(FAMILIES))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint: Any
        if asked.family:
            config: Any = CONFIG_MAPPING[asked.family](**FAMILIES[asked.family])
            checkpoint, asked.layers = MemoryCheckpoint(random_model(config)), 2
        else:
            checkpoint = ModelStore(Path(folder)).open(DEFAULT_MODEL, None)
        ends = (1, 1 + asked.layers, torch.device("cpu"), getattr(torch, asked.dtype))
        exact, other = (load_block(checkpoint, *ends, exact=wanted) for wanted in (True, False))
    print("exact:", why_not(exact) or "yes", "| other:", why_not(other))
    with torch.inference_mode():
        pairs = zip(works(exact, asked.prompt).items(), works(other, asked.prompt).values(), strict=True)
        for (name, mine), theirs in pairs:
            times = 3 if name == "prompt" else asked.rounds * 5
            ratios, spent = [], []
            for _ in range(times):
                start = time.perf_counter()
                mine()
                between = time.perf_counter()
                theirs()
                end = time.perf_counter()
                ratios.append((between - start) / (end - between))
                spent.append((between - start) * 1000)
            told = f"{statistics.median(spent):8.2f} ms   {statistics.median(ratios):.2f} of the other"
            print(f"{name:8} {told}", flush=True)


if __name__ == "__main__":
    main()
