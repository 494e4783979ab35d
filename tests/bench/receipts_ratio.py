"""What receipts cost a run: tokens/s with them over tokens/s without, in one session and over one ring.

    python -m tests.bench.receipts_ratio [--rtt 0 50] [--rounds 3] [--max-tokens 32] [--stages 3]

Runs with and without a receipt alternate, each pair in the other order than the one before, so that a machine that
slows down slows both. One requester keeps its connection, so that loading does not count. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from contextlib import aclosing
from pathlib import Path
from typing import Any

from swarm.base.config import MemberConfig
from swarm.client.client import Requester, RequesterConfig
from swarm.model.files.checkpoint import open_model
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.run.api import Finished, RunRequest
from swarm.testbed.cluster import LocalSwarm, local_ring, split_layers

PROMPT = "Tell me a long story about a ship."


async def once(requester: Requester, prompt: tuple[int, ...], tokens: int, receipt: bool) -> float:
    """Tokens per second of one plain run, first token left out."""
    request = RunRequest(prompt, tokens, ignore_eos=True, speculation="plain", draft="none", receipt=receipt)
    async with aclosing(requester.run(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return event.result.tokens_per_second
    raise RuntimeError("the run has no end")


async def ratio(rtt_ms: float, rounds: int, tokens: int, stages: int) -> dict[str, Any]:
    """Medians of both kinds of run at one distance."""
    layers = split_layers(open_model(DEFAULT_MODEL, ModelStore(), (0, 1)).manifest.n_layers, stages)
    speeds: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        async with local_ring(LocalSwarm(Path(folder), rtt_ms=rtt_ms), layers) as ring:
            member = MemberConfig(ring.requester_state, ModelStore().root, ring.invite, lan=False)
            async with await Requester.connect(RequesterConfig(member, draft="none")) as requester:
                prompt = requester.encode_chat([{"role": "user", "content": PROMPT}])
                await once(requester, prompt, 8, True)
                for number in range(rounds):
                    for receipt in (True, False) if number % 2 else (False, True):
                        speeds[receipt].append(await once(requester, prompt, tokens, receipt))
    with_receipt, without = statistics.median(speeds[True]), statistics.median(speeds[False])
    pairs = [a / b for a, b in zip(speeds[True], speeds[False], strict=True)]
    return {
        "rtt_ms": rtt_ms,
        "tokens_per_second_with": round(with_receipt, 3),
        "tokens_per_second_without": round(without, 3),
        "ratio_of_medians": round(with_receipt / without, 4),
        "median_of_ratios": round(statistics.median(pairs), 4),
        "ratios": [round(pair, 4) for pair in pairs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rtt", type=float, nargs="+", default=[0.0, 50.0], metavar="MS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--stages", type=int, default=3)
    arguments = parser.parse_args()
    found = [asyncio.run(ratio(rtt, arguments.rounds, arguments.max_tokens, arguments.stages)) for rtt in arguments.rtt]
    print(json.dumps({"model": DEFAULT_MODEL, "stages": arguments.stages, "runs": found}))


if __name__ == "__main__":
    main()
