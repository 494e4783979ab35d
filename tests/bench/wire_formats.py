"""What a coarser wire format does to the tokens of the default model, and what it saves.

    python -m tests.bench.wire_formats [--prompts 20] [--max-tokens 64] [--stages 3] [--dtype float32]

First a real ring on this machine: each prompt is answered greedily, without drafts, once per format; the texts are held
against those of bfloat16. A text that parts from it once goes its own way, so the second figure is of one process: the
same stages and the same codec between them, over the prompt and the bfloat16 answer, ask for a token at each place with
the same text before it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import torch

from swarm.base.config import MemberConfig
from swarm.client.client import Requester, RequesterConfig
from swarm.model.block import load_block
from swarm.model.files.checkpoint import open_model
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.rows import Layout, no_commits
from swarm.net.channel.wire import decode_tensor_untrusted, encode_tensor, wire_nbytes
from swarm.recheck.recompute import CPU, Step, run_block
from swarm.ring.certain_rows import certain_rows
from swarm.run.api import Finished, RunRequest
from swarm.testbed.bench import CLASSES, load_prompts
from swarm.testbed.cluster import LocalSwarm, local_ring, split_layers

REFERENCE = "bfloat16"
FORMATS = (REFERENCE, "int8", "fp8")


@dataclass(frozen=True)
class Answer:
    """One prompt's answer over one format."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


def chosen(count: int) -> list[str]:
    """Prompts of every class in turn."""
    prompts = load_prompts()
    return list(
        islice((text for row in zip(*(prompts[name] for name in CLASSES), strict=False) for text in row), count)
    )


async def over_ring(prompts: Sequence[str], stages: int, tokens: int, dtype: str) -> dict[str, list[Answer]]:
    """Every prompt over every format, through one ring of real processes."""
    layers = split_layers(open_model(DEFAULT_MODEL, ModelStore(), (0, 1)).manifest.n_layers, stages)
    found: dict[str, list[Answer]] = {wire: [] for wire in FORMATS}
    words = ("--cpu", "--threads", "1", "--dtype", dtype)
    with tempfile.TemporaryDirectory() as folder:
        async with local_ring(LocalSwarm(Path(folder), arguments=words), layers) as ring:
            member = MemberConfig(ring.requester_state, ModelStore().root, ring.invite, lan=False)
            async with await Requester.connect(RequesterConfig(member, draft="none")) as requester:
                for prompt in prompts:
                    ids = requester.encode_chat([{"role": "user", "content": prompt}])
                    for wire in FORMATS:
                        found[wire].append(Answer(ids, await once(requester, ids, tokens, wire)))
    return found


async def once(requester: Requester, prompt: tuple[int, ...], tokens: int, wire: str) -> tuple[int, ...]:
    """The tokens of one plain greedy run."""
    request = RunRequest(prompt, tokens, ignore_eos=True, speculation="plain", draft="none", wire=wire, receipt=False)
    async with aclosing(requester.run(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return event.result.token_ids
    raise RuntimeError("the run has no end")


def forced(answers: Sequence[Answer], stages: int, dtype: torch.dtype) -> dict[str, list[list[int]]]:
    """Per format and prompt: the token asked for at every place of the answer, the answer so far being given."""
    block = load_block(open_model(DEFAULT_MODEL, ModelStore()), 0, block_layers(), CPU, dtype)
    found: dict[str, list[list[int]]] = {wire: [] for wire in FORMATS}
    for answer in answers:
        ids = [*answer.prompt, *answer.tokens[:-1]]
        layout = Layout(0, len(ids))
        rows = certain_rows(layout, 0, ids)
        rows.want[len(answer.prompt) - 1 :] = True
        for wire in FORMATS:
            hidden: torch.Tensor | None = None
            for first, last in split_layers(block_layers(), stages):
                (hidden,) = run_block(block.view(first, last), layout, [Step(no_commits(), rows, hidden)])
                if last < block_layers():
                    hidden = decode_tensor_untrusted(*encode_tensor(hidden, wire), dtype)
            assert hidden is not None
            found[wire].append([int(token) for token in hidden.argmax(dim=-1)])
    return found


def block_layers() -> int:
    """Layers of the default model."""
    return open_model(DEFAULT_MODEL, ModelStore(), (0, 1)).manifest.n_layers


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens are equal before the first that is not."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=True))))


def summarise(
    free: dict[str, list[Answer]], given: dict[str, list[list[int]]], hidden: int
) -> dict[str, dict[str, Any]]:
    """One row of the table per format."""
    rows: dict[str, dict[str, Any]] = {}
    for wire in FORMATS:
        pairs = list(zip(given[REFERENCE], given[wire], strict=True))
        same = [sum(a == b for a, b in zip(*pair, strict=True)) / len(pair[0]) for pair in pairs]
        rows[wire] = {
            "bytes_per_row": wire_nbytes(wire, (1, hidden)),
            "agreement_given_the_text": round(statistics.fmean(same), 4),
            "worst_prompt": round(min(same), 4),
        }
        runs = list(zip(free[REFERENCE], free[wire], strict=True))
        until = [alike(a.tokens, b.tokens) for a, b in runs]
        rows[wire] |= {
            "equal_texts": sum(a.tokens == b.tokens for a, b in runs),
            "texts": len(runs),
            "median_tokens_before_the_first_difference": statistics.median(until),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="what stages compute in")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    prompts = chosen(arguments.prompts)
    free = asyncio.run(over_ring(prompts, arguments.stages, arguments.max_tokens, arguments.dtype))
    given = forced(free[REFERENCE], arguments.stages, getattr(torch, arguments.dtype))
    hidden = open_model(DEFAULT_MODEL, ModelStore(), (0, 1)).manifest.hidden_size
    result = {"settings": vars(arguments), "formats": summarise(free, given, hidden)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
