"""Hours of churn: real node processes die, leave, hang, come back and are replaced by strangers, while runs go on.

Nobody disturbs the first node and the asker, so what they keep of all who came and went shows as growth.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from receipts.check.verify import verify
from swarm.client.client import Requester
from swarm.run.api import Finished, RunResult
from tests.attacks.stranger import descriptors, resident
from tests.ring.conftest import VOCAB
from tests.ring.nest import Nest, nest
from tests.ring.test_processes import folder
from tests.ring.trials import all_serve, connected, random_request

__all__ = ["folder"]  # a fixture, used by name

BLOCKS = ((0, 2), (2, 4), (4, 6))
TOKENS = 24
EVENTS = ("kill", "leave", "hang", "stranger")
GROWTH = 64 << 20
"""Bytes that a process may grow by between a tenth of the time and its end: caches and arenas fill up late."""
ROUNDING = 1e-3
"""Of a logit; a wrong token of this model is off by 0.1 and more."""
PATIENCE_S = 60.0
LOOK_EVERY_S = 60.0


@dataclass
class Churn:
    """What happened so far. `sizes`: (seconds, processes, bytes and descriptors of the first node and the asker)."""

    events: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    recovered: int = 0
    sizes: list[tuple[float, list[tuple[int, int]]]] = field(default_factory=list)


async def disturb(nodes: Nest, draw: random.Random, churn: Churn, until: float, pause_s: float) -> None:
    """One blow after the other to any node but the first; the blocks keep a holder each, and get their second back."""
    while time.monotonic() < until:
        await asyncio.sleep(draw.random() * 2 * pause_s)
        what, node = draw.choice(EVENTS), draw.choice(nodes.nodes[1:])
        churn.events[what] += 1
        if what == "hang":
            node.signal(signal.SIGSTOP)
            await asyncio.sleep(draw.uniform(0.5, 12.0))
            node.signal(signal.SIGCONT)
            continue
        node.signal(signal.SIGTERM if what == "leave" else signal.SIGKILL)
        assert await node.ended() in (0, -9)
        if what == "stranger":
            nodes.nodes.remove(node)
            nodes.invite = str(nodes.nodes[0].ready["invite"])
            await nodes.add(node.layers)
        else:
            await nodes.again(node)


def near_best(whole: LlamaForCausalLM, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
    """Whether each token is the one that transformers finds best, or one that rounding cannot tell from it.

    In hours of random prompts some have two best tokens 1e-5 apart, where float32 in another order of sums decides.
    """
    with torch.inference_mode():
        logits = whole(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    taken = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return len(tokens) == TOKENS and bool((logits.max(-1).values - taken <= ROUNDING).all())


async def one_run(requester: Requester, draw: random.Random, whole: LlamaForCausalLM) -> RunResult:
    """Exact, and with a receipt that verifies, whatever became of its ring."""
    request = random_request(draw, VOCAB, TOKENS, longest=60)
    result: RunResult | None = None
    async with aclosing(requester.run(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                result = event.result
    assert result is not None
    assert near_best(whole, request.prompt_ids, result.token_ids), (request, result)
    receipt = Path(str(result.receipt))
    assert verify(receipt.read_bytes()).refusal is None, result
    receipt.unlink()  # ten hours of them are not what is measured
    return result


async def ask(requester: Requester, draw: random.Random, whole: LlamaForCausalLM, churn: Churn, until: float) -> None:
    """Runs, one after the other."""
    while time.monotonic() < until:
        churn.recovered += (await one_run(requester, draw, whole)).recoveries > 0
        churn.runs += 1


async def watch(pids: list[int], churn: Churn, begun: float, until: float, log: Path) -> None:
    """Sizes, now and then, and into a file for whoever waits for hours."""
    while time.monotonic() < until:
        await asyncio.sleep(min(LOOK_EVERY_S, max(0.1, until - time.monotonic())))
        churn.sizes.append((time.monotonic() - begun, [(resident(pid), descriptors(pid)) for pid in pids]))
        line = {"s": round(churn.sizes[-1][0]), "runs": churn.runs, "recovered": churn.recovered, **churn.events}
        with log.open("a") as out:
            out.write(json.dumps(line | {"sizes": churn.sizes[-1][1]}) + "\n")


async def churned(folder: Path, state: Path, seconds: float, seed: int, pause_s: float = 4.0) -> Churn:
    """Disturb a swarm of two holders a block for so long. Returns what happened."""
    whole = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    churn = Churn()
    async with nest(folder, state / "nodes") as nodes:
        first = await nodes.add(BLOCKS[0])
        await asyncio.gather(*(nodes.add(block) for block in (BLOCKS * 2)[1:]))
        async with await connected(nodes, state / "asker", draft="lm", draft_model=str(folder)) as requester:
            async with asyncio.timeout(PATIENCE_S):
                await all_serve(nodes, requester)
            begun = time.monotonic()
            until = begun + seconds
            async with asyncio.TaskGroup() as group:
                group.create_task(disturb(nodes, random.Random(seed), churn, until, pause_s))
                for asker in range(2):
                    group.create_task(ask(requester, random.Random(seed * 7 + asker), whole, churn, until))
                group.create_task(watch([first.pid, os.getpid()], churn, begun, until, state / "churn.log"))
            async with asyncio.timeout(PATIENCE_S):
                await all_serve(nodes, requester)  # in the end everybody who is there is seen by the asker
            quiet = await one_run(requester, random.Random(seed), whole)
            assert quiet.finish_reason == "length"
            assert not requester.desk.links and not requester.desk.loops
    return churn


def grew(churn: Churn) -> list[tuple[int, int]]:
    """Bytes and descriptors more at the end than after a tenth of the time, for each of those watched."""
    early, late = churn.sizes[len(churn.sizes) // 10][1], churn.sizes[-1][1]
    return [(now[0] - then[0], now[1] - then[1]) for then, now in zip(early, late, strict=True)]


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("minutes", [10, 30, 60, 600])
async def test_hours_of_churn(folder: Path, tmp_path: Path, minutes: int) -> None:
    churn = await churned(folder, tmp_path, 60.0 * minutes, minutes)
    print(
        f"{minutes} minutes: {dict(churn.events)}, {churn.runs} runs, {churn.recovered} recovered, grew {grew(churn)}"
    )
    assert all(churn.events[what] for what in EVENTS) and churn.recovered
    assert all(memory < GROWTH and files <= 12 for memory, files in grew(churn))
