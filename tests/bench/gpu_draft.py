"""How long a drafted token takes on a GPU: step by step, with a graph per step, with a graph for the whole chain.

    python -m tests.bench.gpu_draft [--tokens 8] [--repeats 50] [--json FILE]

For the drafter that ships with the default model (when that model is on this machine) and for Llama-shaped models of
0.5 and 1.5 billion random weights, beside the least time that reading the weights once takes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from draft.asset import MadeCheckpoint, default_drafter, read_made
from draft.base import ROOT, DraftNode, DraftStep
from draft.lm import LmDrafter
from draft.loop import ChainLoop
from swarm.base.errors import SwarmError
from swarm.base.events import Event, Notice
from swarm.model.block import load_block
from swarm.model.files.checkpoint import Checkpoint, open_model
from swarm.model.files.manifest import Manifest, TensorEntry
from swarm.model.files.store import DEFAULT_MODEL, ModelStore
from swarm.model.sampler import Sampling

PROMPT = list(range(10, 74))
SHAPES = {
    "random 0.5B": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "heads": 16, "kv": 4},
    "random 1.5B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "heads": 16, "kv": 4},
}


class RandomCheckpoint:
    """A Llama of random weights, made when they are read."""

    def __init__(self, name: str, shape: dict[str, int], vocab: int = 49152) -> None:
        self.config = LlamaConfig(
            vocab_size=vocab,
            hidden_size=shape["hidden_size"],
            intermediate_size=shape["intermediate_size"],
            num_hidden_layers=shape["num_hidden_layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["kv"],
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
        self.bytes_read = 0
        with torch.device("meta"):
            state = LlamaForCausalLM(self.config).state_dict()
        self._shapes = {n: tuple(t.shape) for n, t in state.items() if n != "lm_head.weight"}
        entries = tuple(TensorEntry(n, s, "BF16", 0, "0" * 64) for n, s in self._shapes.items())
        self.manifest = Manifest(name, self.config.to_dict(), entries)

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(self._shapes[name], dtype=dtype) * 0.02

    def export_tensor_bytes(self, name: str, offset: int, length: int) -> bytes:
        raise NotImplementedError


@dataclass(frozen=True)
class Result:
    """Median milliseconds per drafted token; roofline_ms: the weights' bytes over the measured bandwidth."""

    drafter: str
    weights_mb: float
    eager_ms: float
    step_graph_ms: float
    loop_graph_ms: float
    roofline_ms: float
    notices: tuple[str, ...]


def draft_chain(drafter: LmDrafter, tokens: int, whole: bool) -> None:
    """Draft a chain below a token that nobody guessed: in one step, or level by level as a requester may ask."""
    root, position, id = ROOT, len(PROMPT), 1
    line = [DraftNode(id, root, 5, position)]
    committed: tuple[DraftNode, ...] = tuple(line)
    if whole:
        drafter.step(DraftStep(committed=committed, expand=(id,), depth=tokens))
        return
    nodes: tuple[DraftNode, ...] = ()
    for _ in range(tokens):
        levels = drafter.step(DraftStep(committed=committed, nodes=nodes, expand=(id,)))[0].levels
        nodes = (DraftNode(id + 1, id, levels[0][0].token, position + 1),)
        committed, id, position = (), id + 1, position + 1


def per_token_ms(drafter: LmDrafter, tokens: int, repeats: int, whole: bool, wait: Callable[[], None]) -> float:
    times = []
    for _ in range(repeats + 3):  # the first ones warm up and capture
        drafter.begin(PROMPT, Sampling())
        wait()
        start = time.perf_counter()
        draft_chain(drafter, tokens, whole)
        wait()
        times.append((time.perf_counter() - start) * 1000 / tokens)
    return statistics.median(times[3:])


def bandwidth(device: torch.device, wait: Callable[[], None]) -> float:
    """Bytes per second that a large sum reads."""
    data = torch.zeros(1 << (28 if device.type == "cuda" else 24), dtype=torch.float32, device=device)
    data.sum()
    wait()
    start = time.perf_counter()
    for _ in range(10):
        data.sum()
    wait()
    return 10 * data.nbytes / (time.perf_counter() - start)


def read_bytes(checkpoint: Checkpoint, tokens: torch.Tensor | None, itemsize: int) -> int:
    """Weights that one token needs: all layers and the head (the embedding is looked up, not read)."""
    layers = sum(math.prod(t.shape) for t in checkpoint.manifest.tensors if "embed_tokens" not in t.name)
    rows = checkpoint.manifest.vocab_size if tokens is None else len(tokens)
    return (layers + rows * checkpoint.manifest.hidden_size) * itemsize


def measure(
    name: str,
    checkpoint: Checkpoint,
    tokens: torch.Tensor | None,
    device: torch.device,
    args: argparse.Namespace,
    speed: float,
) -> Result:
    wait = waiter(device)
    block = load_block(checkpoint, 0, checkpoint.manifest.n_layers, device, torch.bfloat16)
    if tokens is not None:
        block.narrow_head(tokens)
    seen: list[Event] = []
    eager = LmDrafter(block, tokens, context=1024)
    looped = LmDrafter(block, tokens, context=1024, loop=ChainLoop(report=seen.append))
    read = read_bytes(checkpoint, tokens, 2)
    return Result(
        drafter=name,
        weights_mb=read / 1e6,
        eager_ms=per_token_ms(eager, args.tokens, args.repeats, True, wait),
        step_graph_ms=per_token_ms(looped, args.tokens, args.repeats, False, wait),
        loop_graph_ms=per_token_ms(looped, args.tokens, args.repeats, True, wait),
        roofline_ms=1000 * read / speed,
        notices=tuple(e.text for e in seen if isinstance(e, Notice)),
    )


def waiter(device: torch.device) -> Callable[[], None]:
    """Waits until the device has done what was asked."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def shipped() -> tuple[Checkpoint, torch.Tensor | None] | str:
    """The default model's drafter, or why it cannot be measured."""
    try:
        target = open_model(DEFAULT_MODEL, ModelStore(), offline=True)
    except SwarmError as exc:
        return str(exc)
    path = default_drafter(target.manifest)
    made = None if path is None else read_made(path)
    if made is None:
        return "no drafter ships with the default model"
    checkpoint = MadeCheckpoint(made, target)
    return checkpoint, checkpoint.head_tokens()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8, help="length of a drafted chain")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--device", default="cuda", help="cpu runs the same code uncaptured, to try the script")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured (the drafter's graphs need one)")
        return 0
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    speed = bandwidth(device, waiter(device))
    print(f"{name}, {speed / 1e9:.0f} GB/s read, chains of {args.tokens}, bfloat16, context 1024, batch 1")
    results = []
    found = shipped()
    if isinstance(found, str):
        print(f"default drafter skipped: {found}")
    else:
        results.append(measure("default drafter", *found, device, args, speed))
    for label, shape in SHAPES.items() if device.type == "cuda" else ():
        results.append(measure(label, RandomCheckpoint(label, shape), None, device, args, speed))
    for r in results:
        print(
            f"{r.drafter:16} {r.weights_mb:7.0f} MB  eager {r.eager_ms:6.2f}  graph per step {r.step_graph_ms:6.2f}  "
            f"whole loop {r.loop_graph_ms:6.2f}  roofline {r.roofline_ms:5.2f} ms/token  {' '.join(r.notices)}"
        )
    if args.json:
        body = {"device": name, "bandwidth": speed, "tokens": args.tokens, "results": [asdict(r) for r in results]}
        args.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
