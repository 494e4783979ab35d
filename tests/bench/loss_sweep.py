"""Tokens per second over paths that lose packets and jitter: a ring of three stages over the lab's links (root).

    python -m tests.bench.loss_sweep [--rtt 50] [--loss 0 0.5 2] [--jitter 0 10 30] [--prompts 2] [--max-tokens 40]

--loss is the percentage of packets that get lost one way between two hosts, --jitter by how much one is late at most,
evenly spread, in order. Kernel TCP repairs it. Nodes and requester stay, only links change; the first run of each mode
is not counted. Prints one JSON object: per cell and mode medians of tokens per second and of the longest wait.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from itertools import product
from pathlib import Path
from typing import Any

from swarm.base.config import MemberConfig
from swarm.client.client import Requester, RequesterConfig
from swarm.model.files.checkpoint import open_model
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.run.api import CommittedTokens, Finished, RunRequest
from swarm.testbed.bench import load_prompts
from swarm.testbed.child_process import ChildProcess
from swarm.testbed.cluster import LocalSwarm, local_ring, split_layers
from tests.lab.lab import HostSpec, Lab, lab

STAGES = 3
MODES = (("plain", "none"), ("stream", "auto"))


# In the requester's host


async def answer_orders(invite: str, state: Path) -> None:
    """A requester that runs what its stdin says, one JSON line each, and prints how it went."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    member = MemberConfig(state, ModelStore().root, invite, lan=False)
    async with await Requester.connect(RequesterConfig(member, draft="auto")) as requester:
        print(json.dumps({"event": "ready"}), flush=True)
        while line := await reader.readline():
            order = json.loads(line)
            print(json.dumps({"event": order["name"], **await once(requester, order)}), flush=True)


async def once(requester: Requester, order: dict[str, Any]) -> dict[str, float]:
    """One run: tokens per second after the first token, and the longest time between two commits."""
    prompt = requester.encode_chat([{"role": "user", "content": order["prompt"]}])
    request = RunRequest(
        prompt, order["tokens"], ignore_eos=True, speculation=order["mode"], draft=order["draft"], receipt=False
    )
    at: list[float] = []
    async with aclosing(requester.run(request)) as events:
        async for event in events:
            if isinstance(event, CommittedTokens):
                at.append(time.monotonic())
            if isinstance(event, Finished):
                speed = event.result.tokens_per_second
    waits = [b - a for a, b in zip(at, at[1:], strict=False)]
    return {"tokens_per_second": speed, "longest_ms": 1000 * max(waits, default=0.0)}


# Outside


class Asker:
    """Gives orders to the requester and waits for each."""

    def __init__(self, child: ChildProcess) -> None:
        self._child, self._count = child, 0

    async def __call__(self, mode: str, draft: str, prompt: str, tokens: int) -> dict[str, Any]:
        self._count += 1
        name = f"run-{self._count}"
        order = {"name": name, "mode": mode, "draft": draft, "prompt": prompt, "tokens": tokens}
        self._child.say(json.dumps(order))
        return await self._child.event(name, 300)


def set_links(net: Lab, loss: float, jitter_ms: float) -> None:
    """Every path is two links, so each has half of it."""
    for host in net.hosts:
        net.link(host, f"loss {loss / 2:g}")
        net.link(host, f"jitter {jitter_ms / 2:g}")


async def sweep(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every cell, one after the other."""
    prompts: Sequence[str] = load_prompts()["chat"][: arguments.prompts]
    layers = split_layers(open_model(DEFAULT_MODEL, ModelStore(), (0, 1)).manifest.n_layers, STAGES)
    rows = []
    hosts = (HostSpec(delay_ms=arguments.rtt / 4),) * (STAGES + 1)
    with tempfile.TemporaryDirectory() as folder:
        async with lab(*hosts, single_packets=True) as net:
            places = tuple(net.place(host) for host in net.hosts[:STAGES])
            swarm = LocalSwarm(Path(folder), arguments=("--cpu", "--threads", "1"), places=places)
            async with local_ring(swarm, layers) as ring:
                words = (sys.executable, "-m", "tests.bench.loss_sweep", "--ask", ring.invite)
                child = await net.start(net.hosts[STAGES], *words, "--state", str(ring.requester_state), stdin=True)
                await child.event("ready", 120)
                ask = Asker(child)
                for mode, draft in MODES:
                    await ask(mode, draft, prompts[0], arguments.max_tokens)
                for loss, jitter_ms in product(arguments.loss, arguments.jitter):
                    set_links(net, loss, jitter_ms)
                    for mode, draft in MODES:
                        runs = [await ask(mode, draft, prompt, arguments.max_tokens) for prompt in prompts]
                        row = {"loss_percent": loss, "jitter_ms": jitter_ms, "mode": mode}
                        for name in ("tokens_per_second", "longest_ms"):
                            row[name] = round(statistics.median(run[name] for run in runs), 2)
                        rows.append(row)
                        print(row, file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt", type=float, default=50.0, metavar="MS")
    parser.add_argument("--loss", type=float, nargs="+", default=[0.0, 0.5, 2.0], metavar="PERCENT")
    parser.add_argument("--jitter", type=float, nargs="+", default=[0.0, 10.0, 30.0], metavar="MS")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--ask", metavar="INVITE", help=argparse.SUPPRESS)
    parser.add_argument("--state", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        asyncio.run(answer_orders(arguments.ask, arguments.state))
    else:
        print(json.dumps({"rtt_ms": arguments.rtt, "stages": STAGES, "cells": asyncio.run(sweep(arguments))}))


if __name__ == "__main__":
    main()
