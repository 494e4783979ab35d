"""Token scores of honest and of other runs of the default model, as `swarm verify --replay` gives them.

    python -m tests.bench.token_scores [--tokens 64]

Real rings of two stages in this process, real weights; each run is replayed in float32. "other seed" and "other
temperature" are an honest bfloat16 run held against an order that says otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from receipts.check.recompute import default_limit
from receipts.check.token_stats import TokenStats, token_stats
from receipts.check.verify import verify
from receipts.format.opening import Order
from swarm.model.files.checkpoint import Checkpoint, load_tokenizer, open_model
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.sampler import Sampling
from swarm.recheck.replayer import ModelReplayer
from swarm.run.api import RunRequest
from tests.ring.signed import LIES, signed_ring

PROMPTS = ("Write a short story about a lighthouse keeper.", "Explain why the sky is blue.")
TEMPERATURE = 0.8


def score(checkpoint: Checkpoint, order: Order, prompt: list[int], tokens: list[int]) -> TokenStats:
    """Of tokens that were drawn after a prompt, by an order."""
    found = ModelReplayer(checkpoint).replay(order, prompt, tokens)
    return token_stats(found.gaps, default_limit(order.dtype, order.wire))


async def drawn(
    checkpoint: Checkpoint,
    folder: Path,
    prompt: list[int],
    sampling: Sampling,
    dtype: torch.dtype,
    lie: str,
    count: int,
) -> tuple[Order, list[int]]:
    """Order and tokens of one run; both stages tell the lie, "" none."""
    half, whole = checkpoint.manifest.n_layers // 2, checkpoint.manifest.n_layers
    twists = {0: LIES[lie], 1: LIES[lie]} if lie else {}
    async with signed_ring(checkpoint, [(0, half), (half, whole)], folder, dtype=dtype, twists=twists) as ring:
        result = await ring.generate(RunRequest(tuple(prompt), count, sampling, speculation="plain", ignore_eos=True))
    run = verify(Path(str(result.receipt)).read_bytes()).run
    assert run is not None
    return run.order, list(result.token_ids)


async def main() -> None:
    """Every case, every prompt, greedy and sampled."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, store = Path(temporary), ModelStore(Path(temporary) / "models")
        checkpoint, tokenizer = open_model(DEFAULT_MODEL, store), load_tokenizer(DEFAULT_MODEL, store)
        cases = [("", torch.float32), ("", torch.bfloat16), ("int8", torch.bfloat16), ("int4", torch.bfloat16)]
        cases.append(("a skipped layer", torch.bfloat16))
        for number, text in enumerate(PROMPTS):
            prompt = tokenizer(text)["input_ids"]
            for sampling in (Sampling(), Sampling(TEMPERATURE, seed=11 + number)):
                how = "greedy" if sampling.greedy else f"temperature {TEMPERATURE}"
                for lie, dtype in cases:
                    where = folder / f"{number}{how[:2]}{lie[:5]}{dtype}"
                    order, tokens = await drawn(checkpoint, where, prompt, sampling, dtype, lie, given.tokens)
                    found = [(lie or "honest", order)]
                    if not lie and dtype == torch.bfloat16 and not sampling.greedy:
                        plain = order.sampler
                        found.append(("other seed", replace(order, sampler=replace(plain, seed="00" * 8))))
                        for ppm in (0, 700_000, 1_000_000, 1_300_000):
                            other = replace(order, sampler=replace(plain, temperature_ppm=ppm))
                            found.append((f"as if at {ppm / 1e6}", other))
                    for name, claimed in found:
                        stats = await asyncio.to_thread(score, checkpoint, claimed, prompt, tokens)
                        what = f"{str(dtype)[6:]:9} {how:16} {name:16}"
                        print(f"{what} {stats.score:8.4f}  {stats.differing:3}/{stats.tokens} differ", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
