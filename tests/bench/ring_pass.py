"""What one pass round a ring costs, by distance: three stages, plain decoding, no drafts.

    python -m tests.bench.ring_pass [--rtt 0 20 50 80] [--lab] [--out ring_pass.json]

A pass crosses stages + 1 links one way, so it should take the stages' compute plus (stages + 1) * RTT / 2. What it
takes beyond that is the overhead of this program and of the links. Beside it stands the same model in one process.
With --lab (root) the distance is kernel TCP over delay links; otherwise each node has a delay proxy in front of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from swarm.base.events import silent
from swarm.model.files.store import ModelStore
from swarm.testbed.bench import load_prompts, machine
from swarm.testbed.bench_ring import RingSettings, open_ring
from swarm.testbed.cluster import LocalSwarm, local_ring, split_layers
from tests.bench.chat import asked
from tests.lab.lab import lab, ring


@dataclass(frozen=True)
class Pass:
    """Medians over the prompts, in milliseconds. `path_ms`: what the distance alone costs; `over_ms`: the rest."""

    rtt_ms: float
    stages: int
    pass_ms: float
    compute_ms: float
    path_ms: float
    over_ms: float
    tokens_per_second: float


async def passes(args: argparse.Namespace, rtt_ms: float, stages: int, n_layers: int) -> Pass:
    """Measure one distance."""
    prompts = load_prompts()["chat"][: args.prompts]
    words = ("--cpu", "--threads", str(args.threads), "--dtype", args.dtype)
    with tempfile.TemporaryDirectory() as state:
        swarm = LocalSwarm(Path(state), args.model, arguments=words)
        if args.lab and rtt_ms:
            return summarise(
                rtt_ms, stages, await over_lab(swarm, rtt_ms, split_layers(n_layers, stages), prompts, args)
            )
        settings = RingSettings(swarm, ModelStore().root, n_layers, stages)
        async with open_ring(settings, rtt_ms, silent) as ask:
            await ask(prompts[0], "plain", "none", 8)
            results = [await ask(prompt, "plain", "none", args.max_tokens) for prompt in prompts]
    return summarise(rtt_ms, stages, results)


async def over_lab(
    swarm: LocalSwarm,
    rtt_ms: float,
    blocks: Sequence[tuple[int, int]],
    prompts: Sequence[str],
    args: argparse.Namespace,
) -> list[Mapping[str, Any]]:
    """The same with every node and the requester in a namespace of its own."""
    words = ("--max-tokens", str(args.max_tokens), "--speculation", "plain", "--draft", "none", "--ignore-eos")
    async with lab(*ring(len(blocks) + 1, rtt_ms)) as net:
        *places, requester = (net.place(host) for host in net.hosts)
        async with local_ring(replace(swarm, places=tuple(places), requester=requester), blocks) as nodes:
            return [await nodes.generate(prompt, *words) for prompt in prompts]


def summarise(rtt_ms: float, stages: int, results: Sequence[Mapping[str, Any]]) -> Pass:
    """Time per token after the first, over what compute and distance explain."""
    each = [1e3 * (r["seconds"] - r["ttft_seconds"]) / (r["new_tokens"] - 1) for r in results]
    compute = [sum(stage["compute_ms"] for stage in r["ring"]) for r in results]
    path = (stages + 1) * rtt_ms / 2
    over = statistics.median(a - b - path for a, b in zip(each, compute, strict=True))
    middle = statistics.median(each)
    return Pass(rtt_ms, stages, middle, statistics.median(compute), path, over, 1e3 / middle)


def one_process(args: argparse.Namespace) -> tuple[int, float]:
    """Layers of the model, and milliseconds per token of transformers' own `generate` with all of them here."""
    import torch
    from transformers import AutoModelForCausalLM

    from swarm.model.files.checkpoint import load_tokenizer, open_model
    from swarm.model.files.store import DEFAULT_MODEL

    torch.set_num_threads(args.threads)
    store, ref, dtype = ModelStore(), args.model or DEFAULT_MODEL, getattr(torch, args.dtype)
    checkpoint = open_model(ref, store)
    model = AutoModelForCausalLM.from_config(checkpoint.config, dtype=dtype).eval()
    weights = {entry.name: checkpoint.read(entry.name, dtype) for entry in checkpoint.manifest.tensors}
    _, unexpected = model.load_state_dict(weights, strict=False)  # a tied head is stored once
    assert not unexpected
    tokenizer = load_tokenizer(ref, store)
    each = []
    for prompt in asked(tokenizer, load_prompts()["chat"][: args.prompts]):
        ids = torch.tensor([prompt])
        seconds = []
        for tokens in (1, args.max_tokens):
            begun = time.perf_counter()
            model.generate(ids, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
            seconds.append(time.perf_counter() - begun)
        each.append(1e3 * (seconds[1] - seconds[0]) / (args.max_tokens - 1))
    return checkpoint.manifest.n_layers, statistics.median(each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt", type=float, nargs="+", default=[0.0, 20.0, 50.0, 80.0], metavar="MS")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--model", default=None)
    parser.add_argument("--lab", action="store_true", help="delay links between namespaces instead of proxies; root")
    parser.add_argument("--out", type=Path, default=Path("ring_pass.json"))
    args = parser.parse_args()
    n_layers, alone_ms = one_process(args)
    print(f"one process: {alone_ms:.1f} ms per token")
    print(
        f"{'RTT ms':>7} {'stages':>7} {'pass ms':>8} {'compute':>8} {'path':>6} {'over':>6} {'tok/s':>7} {'x alone':>8}"
    )
    rows = []
    for rtt_ms, stages in [(0.0, 1), *((rtt_ms, args.stages) for rtt_ms in args.rtt)]:
        row = asyncio.run(passes(args, rtt_ms, stages, n_layers))
        rows.append(row)
        print(
            f"{row.rtt_ms:7.0f} {row.stages:7d} {row.pass_ms:8.1f} {row.compute_ms:8.1f} {row.path_ms:6.0f} "
            f"{row.over_ms:6.1f} {row.tokens_per_second:7.2f} {alone_ms / row.pass_ms:8.2f}"
        )
    result = {"machine": machine(), "one_process_ms": alone_ms, "passes": [asdict(row) for row in rows]}
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
