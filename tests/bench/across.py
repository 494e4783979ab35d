"""What a drafter is worth on a target's own greedy text: first choices, first eight, tokens per pass of a chain.

    python -m tests.bench.across --model qwen2.5-coder-1.5b [--draft-model REF] [--prompts 4] [--texts FILE]

The target's continuations are computed once and kept in `--texts`; drafters are held against them token by token, so
that they can be compared on any machine, however busy it is.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from draft.base import ROOT, Drafter, DraftNode, DraftStep
from draft.prompts import held_out
from swarm.base.events import silent
from swarm.model.block import Job, load_block
from swarm.model.files.checkpoint import end_tokens, load_tokenizer, open_model
from swarm.model.files.store import ModelStore
from swarm.model.kvcache import KVPool
from swarm.model.rows import Layout, Rows, no_commits
from swarm.model.sampler import Sampling
from tests.bench.chat import asked

CHAIN = 8
Texts = dict[str, list[tuple[list[int], list[int]]]]


def continuations(args: argparse.Namespace) -> Texts:
    """(prompt, greedy continuation) by kind, from the file or computed into it."""
    if args.texts.is_file():
        read: Texts = json.loads(args.texts.read_text())
        return read
    store = ModelStore(args.store)
    target, tokenizer = open_model(args.model, store), load_tokenizer(args.model, store)
    device, layers = torch.device("cpu"), target.manifest.n_layers
    block = load_block(target, 0, layers, device, torch.bfloat16, silent, weights="auto")
    ends, out = end_tokens(target, store, args.model), Texts()
    for name, prompts in unseen(args.prompts).items():
        out[name] = []
        for ids in asked(tokenizer, prompts):
            with torch.inference_mode(), closing(KVPool(block, 1 << 40).open(Layout(8, 1024), 0, layers)) as kv:
                tokens, todo = list[int](), ids
                while len(tokens) < args.max_tokens and not ends.intersection(tokens):
                    rows = rows_of(todo, len(ids) + len(tokens) - len(todo))
                    logits = block.forward([Job(kv, no_commits(), rows, None)])[0]
                    tokens.append(int(logits[-1].argmax()))
                    todo = tokens[-1:]
            out[name].append((ids, tokens))
            args.texts.write_text(json.dumps(out))
            print(name, len(tokens), "tokens", flush=True)
    return out


def unseen(count: int) -> dict[str, list[str]]:
    """Prompts of kinds that no drafter was trained on."""
    rng, out = random.Random(1), dict[str, list[str]](prose=[], code=[])
    while any(len(texts) < count for texts in out.values()):
        prompt = held_out(rng)
        if prompt.source == "task" and len(out.get(prompt.register, ())) < count and prompt.register in out:
            out[prompt.register].append(prompt.user)
    return out


def rows_of(tokens: Sequence[int], start: int) -> Rows:
    """Certain rows from a position on, of which the last is answered."""
    at = np.arange(start, start + len(tokens), dtype=np.uint32)
    want = np.zeros(len(tokens), np.bool_)
    want[-1] = True
    return Rows(at + 8, at, at + 1, np.zeros((len(tokens), 1), np.uint8), np.array(tokens, np.int32), want)


def replay(drafter: Drafter, prompt: list[int], truth: list[int]) -> tuple[int, int, int, int, float]:
    """(positions, first choices right, first eight right, passes of a chain, seconds) of one text."""
    drafter.begin(prompt, Sampling())
    first = eight = passes = at = 0
    begun = time.perf_counter()
    root, next_id, committed = ROOT, 1, tuple[DraftNode, ...]()
    positions = 0
    while at < len(truth):
        step = DraftStep(committed, (), (), (root,), CHAIN, 8)
        (expansion,) = drafter.step(step)
        chain = [level[0].token for level in expansion.levels if level]
        right = 0
        for level in expansion.levels:
            if at + right >= len(truth) or not level:
                break
            positions += 1
            first += level[0].token == truth[at + right]
            eight += truth[at + right] in [child.token for child in level[:8]]
            if level[0].token != truth[at + right]:
                break
            right += 1
        assert right <= len(chain)
        passes += 1
        committed = ()
        for token in truth[at : at + right + 1]:
            committed += (DraftNode(next_id, root, token, len(prompt) + at),)
            root, next_id, at = next_id, next_id + 1, at + 1
    return positions, first, eight, passes, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--draft-model", help="a drafter (default: what --draft auto takes)")
    parser.add_argument("--prompts", type=int, default=4, help="of each kind")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--texts", type=Path, default=Path("texts.json"))
    parser.add_argument("--only-texts", action="store_true")
    args = parser.parse_args()
    texts = continuations(args)
    if args.only_texts:
        return
    from swarm.client.drafters import load_drafters

    store = ModelStore(args.store)
    target, tokenizer = open_model(args.model, store), load_tokenizer(args.model, store)
    ends = end_tokens(target, store, args.model)
    drafters = load_drafters("auto", args.draft_model, None, target, tokenizer, store, silent, ends)
    assert drafters.lm is not None, "nothing drafts"
    print(f"{drafters.why}; a step of one leaf {drafters.step_ms:.0f} ms")
    for name, pairs in texts.items():
        each = [replay(drafters.lm, prompt, truth) for prompt, truth in pairs]
        positions, first, eight, passes, seconds = (sum(column) for column in zip(*each, strict=True))
        tokens = sum(len(truth) for _, truth in pairs)
        per = statistics.mean(len(truth) / one[3] for one, (_, truth) in zip(each, pairs, strict=True))
        print(
            f"{name:6} {tokens} tokens: {tokens / passes:.2f} tokens a pass of a chain of {CHAIN} (mean of texts "
            f"{per:.2f}), first choice {first / positions:.2f}, first eight {eight / positions:.2f}, "
            f"{1000 * seconds / passes:.0f} ms a chain"
        )


if __name__ == "__main__":
    main()
