"""What a drafter loses by reading a window of a long text, and what it saves: python -m tests.bench.window

The default model goes on greedily after prompts of `--context` tokens, made of this repository's pages (prose) and
modules (code); its texts are kept in `--texts`. The drafter that ships is held against them token by token, reading all
or a window (its size, of it the beginning kept): first choices, first eight, tokens a pass of a chain of 8, and
processor time of its prefill and of a chain.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from pathlib import Path

import torch

from draft.asset import load_drafter
from draft.lm import LmDrafter
from draft.window import AHEAD, TextWindow
from swarm.base.events import silent
from swarm.model.block import Job, load_block
from swarm.model.files.checkpoint import end_tokens, load_tokenizer, open_model
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.kvcache import KVPool
from swarm.model.rows import Layout, no_commits
from swarm.model.sampler import Sampling
from swarm.model.text.tokenizer import Tokenizer
from tests.bench.across import CHAIN, Texts, replay, rows_of
from tests.bench.chat import asked

PROMPTS = {
    "prose": ("docs/performance.md", "docs/receipts.md", "docs/membership.md", "docs/architecture.md"),
    "code": ("swarm/model", "swarm/run", "swarm/mesh", "swarm/stage"),
}
ASKED = {
    "prose": "Explain in your own words what this text is about.",
    "code": "Write a short test in Python for one class of this file.",
}


def long_prompts(tokenizer: Tokenizer, context: int, kind: str) -> list[list[int]]:
    """Prompts of about so many tokens."""
    root, found = Path(__file__).resolve().parents[2], list[str]()
    for name in PROMPTS[kind]:
        path = root / name
        parts = sorted(path.glob("*.py"))[:12] if path.is_dir() else [path]
        ids = tokenizer.encode("\n".join(part.read_text() for part in parts))[: context - 60]
        found.append(tokenizer.decode(ids) + "\n\n" + ASKED[kind])
    return asked(tokenizer, found)


def continuations(store: ModelStore, context: int, prompts: int, count: int, path: Path) -> Texts:
    """(prompt, greedy continuation) by kind, from the file or computed into it."""
    if path.is_file():
        read: Texts = json.loads(path.read_text())
        return read
    target, tokenizer = open_model(DEFAULT_MODEL, store), load_tokenizer(DEFAULT_MODEL, store)
    layers = target.manifest.n_layers
    block = load_block(target, 0, layers, torch.device("cpu"), torch.bfloat16, silent, weights="auto")
    ends, out = end_tokens(target, store, DEFAULT_MODEL), Texts()
    for kind in PROMPTS:
        out[kind] = []
        for ids in long_prompts(tokenizer, context, kind)[:prompts]:
            layout = Layout(8, len(ids) + count + 8)
            with torch.inference_mode(), closing(KVPool(block, 1 << 40).open(layout, 0, layers)) as kv:
                tokens, at, todo = list[int](), 0, ids
                while len(tokens) < count and not ends.intersection(tokens):
                    part, todo = todo[:256], todo[256:]
                    logits = block.forward([Job(kv, no_commits(), rows_of(part, at), None)])[0]
                    at += len(part)
                    if not todo:
                        todo = [int(logits[-1].argmax())]
                        tokens += todo
            out[kind].append((ids, tokens))
            path.write_text(json.dumps(out))
            print(kind, len(ids), "and", len(tokens), "tokens", flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=5500)
    parser.add_argument("--prompts", type=int, default=4, help="of each kind, at most 4")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--texts", type=Path, default=Path("long-texts.json"))
    parser.add_argument(
        "--windows", nargs="+", default=["0", "2048:64", "1024:64", "512:64", "512:4", "512:0", "256:64"]
    )
    parser.add_argument("--store", type=Path)
    asked = parser.parse_args()
    store = ModelStore(asked.store)
    texts = continuations(store, asked.context, asked.prompts, asked.max_tokens, asked.texts)
    target, tokenizer = open_model(DEFAULT_MODEL, store), load_tokenizer(DEFAULT_MODEL, store)
    torch.set_num_threads(1)
    whole = load_drafter(None, target, tokenizer, store, torch.device("cpu"), context=8192)
    assert isinstance(whole, LmDrafter)
    for word in asked.windows:
        size, _, head = word.partition(":")
        context = 2 * int(size) + AHEAD
        window = TextWindow(int(size), int(head or 0), context) if int(size) else None
        drafter = LmDrafter(whole.block, whole._tokens, context=context if window else 8192, window=window)
        for kind, pairs in texts.items():
            prefill = chains = 0.0
            sums = [0, 0, 0, 0]
            for prompt, truth in pairs:
                start = time.process_time()
                drafter.begin(prompt, Sampling())
                prefill += time.process_time() - start
                start = time.process_time()
                found = replay(drafter, prompt, truth)
                chains += time.process_time() - start
                sums = [a + b for a, b in zip(sums, found[:4], strict=True)]
            positions, first, eight, passes = sums
            # `replay` begins anew: its prefill is taken off.
            print(
                f"{word:8} {kind:6} first {first / positions:.3f}  first eight {eight / positions:.3f}  "
                f"{sum(len(truth) for _, truth in pairs) / passes:.2f} tokens a pass of a chain of {CHAIN}  "
                f"prefill {prefill / len(pairs):.2f} s  a chain {1000 * max(0.0, chains - prefill) / passes:.0f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
