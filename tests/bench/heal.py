"""A swarm of unequal nodes through joins, a leave and a death: how long until every layer is held again, and by whom.

python -m tests.bench.heal [--nodes 8] [--rounds 3]

Real `swarm join` processes of a tiny random model on loopback. The first has fixed layers, the others choose; the last
two join at once. One leaves (more where layers are held often), one is killed, such that layers are held by nobody
until a survivor moves. A requester in this process asks throughout; one answer is under way when the node is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swarm.base.config import MemberConfig
from swarm.client.client import Requester, RequesterConfig
from swarm.discovery.planner_view import members_of
from swarm.run.api import CommittedTokens, Finished, RunRequest, RunResult
from swarm.testbed.cluster import LocalNode, LocalRing, LocalSwarm, local_ring
from tests.swarm.serve.tiny import tiny_tokenizer

N_LAYERS = 12
LONG_TOKENS = 120
KILL_AFTER = 20
WAIT_S = 120.0
CAPACITIES = {4: (6, 6, 6, 6), 8: (5, 4, 3, 5, 4, 6, 5, 5)}

Blocks = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Healed:
    """What one round saw. `moved`: node -> (layers before, layers after) of survivors that hold others now.

    join_s: until both that joined at once served. From the kill, as the requester saw it: down_s until the node was
    known to be gone, heal_s until every layer was held again. answers: short requests that were answered meanwhile.
    long: the answer that was under way.
    """

    join_s: float
    down_s: float
    heal_s: float
    hole: int
    moved: dict[str, tuple[tuple[int, int], tuple[int, int]]]
    answers: int
    recoveries: int
    long: RunResult
    short: RunResult


def make_model(folder: Path, layers: int = N_LAYERS) -> Path:
    """A tiny random model of so many layers with a tokenizer of bytes."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(12)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.4,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def holes(blocks: Blocks) -> set[int]:
    """Layers that nobody holds."""
    return set(range(N_LAYERS)) - {layer for block in blocks.values() for layer in range(*block)}


def choose_losses(blocks: Blocks, fixed: str) -> tuple[tuple[str, ...], str]:
    """Who leaves, as few as will do, and who is killed: only the kill leaves a hole, and one survivor can mend it.

    Blocks are chosen by measured speeds, so how often each layer is held differs from machine to machine. The node with
    fixed layers is killed only where all others hold the same.
    """
    choosers = [node for node in blocks if node != fixed]
    for victims in (choosers, [fixed]):
        for count in range(1, len(choosers) - 1):
            for leavers in combinations(choosers, count):
                rest = {node: block for node, block in blocks.items() if node not in leavers}
                if holes(rest):
                    continue
                for victim in (node for node in rest if node in victims):
                    left = {node: block for node, block in rest.items() if node != victim}
                    if holes(left) and _mendable(left, fixed):
                        return leavers, victim
    raise AssertionError(f"no leaves and kill open a hole that one survivor can fill: {dict(blocks)}")


def _mendable(left: Blocks, fixed: str) -> bool:
    """Whether somebody may give up layers that others hold too, and has room for those that nobody holds."""
    hole = holes(left)
    room = max(hole) - min(hole) + 1
    return any(
        node != fixed and last - first >= room and holes({n: b for n, b in left.items() if n != node}) == hole
        for node, (first, last) in left.items()
    )


class Watch:
    """The requester, and what it knows of the swarm."""

    def __init__(self, requester: Requester) -> None:
        self.requester = requester

    def blocks(self) -> Blocks:
        """Who serves what, by this requester's knowledge; those that it could not reach are left out."""
        found = members_of(self.requester.gossip, bytes.fromhex(self.requester.manifest.digest))
        return {m.node: (m.first, m.last) for m in found if m.state == "serving"}

    async def until(self, reached: Callable[[Blocks], bool]) -> float:
        """Until what is known of the swarm is as asked; the monotonic second."""
        async with asyncio.timeout(WAIT_S):
            while not reached(self.blocks()):
                await self.requester.gossip.wait_change()
        return time.monotonic()

    async def ask(self, tokens: int, begun: asyncio.Event | None = None) -> RunResult:
        """One plain greedy run; `begun` is set once KILL_AFTER tokens are there."""
        request = RunRequest(
            self.requester.encode("Hello"), tokens, ignore_eos=True, speculation="plain", patience_s=WAIT_S
        )
        seen = 0
        async with aclosing(self.requester.run(request)) as events:
            async for event in events:
                if isinstance(event, CommittedTokens):
                    seen += len(event.tokens)
                    if begun is not None and seen >= KILL_AFTER:
                        begun.set()
                if isinstance(event, Finished):
                    return event.result
        raise AssertionError("a run without a result")


async def heal(model: Path, state: Path, capacities: Sequence[int], settle_s: float) -> Healed:
    """One round. `settle_s`: a node may not move right after it took its block; this long is waited before the kill."""
    models = state / "models"
    words = ("--cpu", "--threads", "1", "--dtype", "float32", "--models", str(models))
    swarm = LocalSwarm(state, model=str(model), arguments=words)
    async with local_ring(swarm, [(0, capacities[0])]) as ring:
        for capacity in capacities[1:-2]:
            await ring.add(None, "--capacity", str(capacity))
        began = time.monotonic()
        await asyncio.gather(*(ring.add(None, "--capacity", str(capacity)) for capacity in capacities[-2:]))
        join_s = time.monotonic() - began
        member = MemberConfig(ring.requester_state, models, ring.invite, lan=False, punch=False)
        async with await Requester.connect(RequesterConfig(member, draft="none")) as requester:
            return await _losses(Watch(requester), ring, join_s, settle_s)


async def _losses(watch: Watch, ring: LocalRing, join_s: float, settle_s: float) -> Healed:
    by_id: dict[str, LocalNode] = {node.id: node for node in ring.nodes}
    await watch.until(lambda blocks: set(blocks) == set(by_id))
    before = dict(watch.blocks())
    assert before == {node.id: node.layers for node in ring.nodes}, "a node holds other layers than it said"
    short = await watch.ask(6)
    leavers, victim = choose_losses(before, ring.nodes[0].id)
    for leaver in leavers:
        await by_id[leaver].stop()
    answers = [await watch.ask(6)]
    await asyncio.sleep(settle_s)
    left = {node: block for node, block in before.items() if node not in (*leavers, victim)}
    begun = asyncio.Event()
    long = asyncio.create_task(watch.ask(LONG_TOKENS, begun))
    await begun.wait()
    killed = time.monotonic()
    by_id[victim].send_signal(signal.SIGKILL)
    down_s = await watch.until(lambda blocks: victim not in blocks) - killed
    heal_s = await watch.until(lambda blocks: not holes(blocks)) - killed
    result = await long
    answers.append(await watch.ask(6))
    assert all(answer.token_ids == short.token_ids for answer in answers)
    after = watch.blocks()
    moved = {node: (block, after[node]) for node, block in left.items() if after.get(node) != block}
    times = [round(value, 1) for value in (join_s, down_s, heal_s)]
    return Healed(*times, len(holes(left)), moved, len(answers), result.recoveries, result, short)


async def main(nodes: int, rounds: int) -> None:
    """Print each round, and JSON at the end."""
    found = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            state = Path(folder) / "swarm"
            state.mkdir()
            healed = await heal(make_model(Path(folder) / "model"), state, CAPACITIES[nodes], settle_s=12.0)
        moves = ", ".join(f"{node[:8]} {a[0]}-{a[1] - 1} to {b[0]}-{b[1] - 1}" for node, (a, b) in healed.moved.items())
        print(
            f"round {number + 1}: two joined at once in {healed.join_s} s; {healed.hole} layers lost; known after "
            f"{healed.down_s} s, all held again after {healed.heal_s} s; moved: {moves or 'nobody'}; "
            f"{healed.answers} short answers and one under way, {healed.recoveries} recoveries",
            flush=True,
        )
        found.append({k: v for k, v in asdict(healed).items() if k not in ("long", "short")})
    print(json.dumps(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=8, choices=sorted(CAPACITIES))
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.nodes, arguments.rounds))
