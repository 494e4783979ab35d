"""Streams behind a long text over real nodes: python -m tests.bench.long_ring [--rtt 0 50] [--context 5500]

The default model in three nodes of one thread each; greedy runs of each prompt in turns: plain, and streams whose
drafter reads all of the text, or the window that it reads otherwise. Tokens/s after the first token over plain's, and
seconds to the first token, medians over prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from contextlib import aclosing
from pathlib import Path

from draft.lm import LmDrafter
from swarm.base.events import silent
from swarm.model.files.checkpoint import load_tokenizer
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.run.api import Finished, RunRequest
from swarm.testbed.bench_ring import RingAsker, RingSettings, open_ring
from swarm.testbed.cluster import LocalSwarm
from tests.bench.window import PROMPTS, long_prompts

WAYS = ("plain", "all read", "window")


async def run(asker: RingAsker, prompt: list[int], way: str, count: int, drafters: dict[str, LmDrafter]) -> list[float]:
    """Tokens/s after the first token, seconds to it, tokens a pass."""
    requester = asker.requester
    if way in drafters:
        requester._target.drafters._idle[:] = [drafters[way]]
    request = RunRequest(
        prompt_ids=tuple(prompt),
        max_tokens=count,
        ignore_eos=True,
        speculation="plain" if way == "plain" else "stream",
        draft="none" if way == "plain" else "auto",
        receipt=False,
    )
    async with aclosing(requester.run(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                told = event.result.as_json()
                spent = told["seconds"] - told["ttft_seconds"]
                return [(told["new_tokens"] - 1) / spent, told["ttft_seconds"], told["tokens_per_pass"]]
    raise SystemExit("a run ended without a result")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt", type=float, nargs="+", default=[0.0, 50.0])
    parser.add_argument("--context", type=int, default=5500)
    parser.add_argument("--prompts", type=int, default=3, help="of each kind")
    parser.add_argument("--max-tokens", type=int, default=48)
    asked = parser.parse_args()
    store = ModelStore()
    tokenizer = load_tokenizer(DEFAULT_MODEL, store)
    prompts = [
        (kind, prompt) for kind in PROMPTS for prompt in long_prompts(tokenizer, asked.context, kind)[: asked.prompts]
    ]
    for rtt in asked.rtt:
        with tempfile.TemporaryDirectory() as state:
            async with open_ring(RingSettings(LocalSwarm(Path(state)), store.root, 30), rtt, silent) as ask:
                assert isinstance(ask, RingAsker)
                reading = ask.requester._target.drafters.lm
                assert isinstance(reading, LmDrafter)
                whole = LmDrafter(reading.block, reading._tokens, context=8192)
                drafters = {"all read": whole, "window": reading}
                for kind in PROMPTS:
                    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
                    for named, prompt in prompts:
                        for way in WAYS if named == kind else ():
                            found[way].append(await run(ask, prompt, way, asked.max_tokens, drafters))
                    plain = found["plain"]
                    for way, told in found.items():
                        over = statistics.median(a[0] / b[0] for a, b in zip(told, plain, strict=True))
                        first = statistics.median(a[1] / b[1] for a, b in zip(told, plain, strict=True))
                        speed, wait, per = (statistics.median(column) for column in zip(*told, strict=True))
                        print(
                            f"RTT {rtt:g} {kind:6} {way:9} {speed:5.1f} tokens/s ({over:.2f} of plain, {per:.2f} a "
                            f"pass)  first token after {wait:.1f} s ({first:.2f} of plain)",
                            flush=True,
                        )


if __name__ == "__main__":
    asyncio.run(main())
