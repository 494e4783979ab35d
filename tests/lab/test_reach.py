"""Every pair of NAT kinds: a direct path where TCP can have one, else a relay, ready within 3 s."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

import pytest

from swarm.net.identity import Identity
from swarm.testbed.child_process import ChildProcess
from tests.lab.lab import HostSpec, Lab, Mode, lab

pytestmark = pytest.mark.lab

NODE = str(Path(__file__).with_name("reach_node.py"))
MODES: tuple[Mode, ...] = get_args(Mode)
PORT = 7000
READY_SECONDS = 3.0
DIRECT = ("direct", "reverse", "punched")


def direct_is_possible(a: Mode, b: Mode) -> bool:
    """The table of the lab's README for TCP: all but a symmetric NAT facing anything that filters."""
    return "open" in (a, b) or "sym" not in (a, b)


def identity(host: str) -> Identity:
    return Identity.from_seed((0 if host == "s" else int(host[1:])).to_bytes(32, "big"))


async def start(net: Lab, host: str) -> ChildProcess:
    listen = f"{net.address('s') if host == 's' else '0.0.0.0'}:{PORT}"
    home = () if host == "s" else (identity("s").text, f"{net.address('s')}:{PORT}")
    seed = "0" if host == "s" else host[1:]
    child = await net.start(host, sys.executable, NODE, seed, listen, *home, stdin=True)
    await child.event("ready", 60)
    return child


Pair = tuple[str, str]


async def reach_all(
    rounds: Iterable[Sequence[Pair]], net: Lab, nodes: dict[str, ChildProcess], commands: Counter[str]
) -> dict[Pair, dict[str, object]]:
    """Let the first host of each pair reach the second: one round after the other, the pairs of a round at once.
    commands: how many each host was given so far."""

    async def told(host: str, words: str, event: str) -> dict[str, object]:
        commands[host] += 1
        nodes[host].say(words)
        return await nodes[host].event(f"{event}-{commands[host]}", 30)

    async def reach(asker: str, target: str) -> dict[str, object]:
        result = await told(asker, f"reach {identity(target).text} {net.address(target)}:{PORT}", "reached")
        await told(asker, "drop", "dropped")
        return {"asker": asker, "target": target, **result}

    found = {}
    for pairs in rounds:
        results = await asyncio.gather(*(reach(*pair) for pair in pairs))
        found.update(zip(pairs, results, strict=True))
    return found


async def reach_again(
    found: dict[Pair, dict[str, object]], net: Lab, nodes: dict[str, ChildProcess], commands: Counter[str]
) -> None:
    """Let pairs whose way was no direct one, or took long, try twice more, each alone. Ways race: on a busy machine a
    relay may come in first now and then; where the direct way cannot work, it does so every time."""
    for _ in range(2):
        late = [
            pair
            for pair, result in found.items()
            if result["edge"] not in DIRECT or float(str(result["seconds"])) > READY_SECONDS
        ]
        found.update(await reach_all([[pair] for pair in late], net, nodes, commands))


def table(kinds: dict[tuple[Mode, Mode], dict[str, object]]) -> str:
    lines = ["| | " + " | ".join(MODES) + " |", "| --- |" + " --- |" * len(MODES)]
    for a in MODES:
        cells = [f"{kinds[a, b]['edge']} {kinds[a, b]['seconds']}" if (a, b) in kinds else "" for b in MODES]
        lines.append(f"| {a} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


async def test_every_pair_of_nat_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = [HostSpec(mode) for mode in MODES for _ in range(2)]  # every pair is 50 ms apart
    async with lab(*specs) as net:
        nodes = {"s": await start(net, "s")}
        for host, child in zip(net.hosts, await asyncio.gather(*(start(net, h) for h in net.hosts)), strict=True):
            nodes[host] = child
        n = len(MODES)
        # In every round each host has one part: they are apart, and time is spent on their distances.
        rounds = [[(f"h{2 * i + 1}", f"h{2 * ((i + shift) % n) + 2}") for i in range(n)] for shift in range(n)]
        found = await reach_all(rounds, net, nodes, Counter())
    kinds = {(a, b): found[f"h{2 * i + 1}", f"h{2 * j + 2}"] for i, a in enumerate(MODES) for j, b in enumerate(MODES)}
    (tmp_path / "reach.json").write_text(json.dumps(list(found.values()), indent=1))
    with capsys.disabled():
        print(f"\nasker (down) to target (across), seconds until the first answer:\n{table(kinds)}")
    wrong = {
        pair: result
        for pair, result in kinds.items()
        if (result["edge"] in DIRECT) != direct_is_possible(*pair) or float(str(result["seconds"])) > READY_SECONDS
    }
    assert not wrong


async def test_near_and_far_hosts_begin_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A refusing NAT (leaky) ends an attempt that comes early, so the nearer side has to wait for the farther."""
    specs = [HostSpec("leaky", 2.0), HostSpec("leaky", 80.0), HostSpec("cone", 40.0)]
    async with lab(*specs) as net:
        nodes = {"s": await start(net, "s")}
        for host, child in zip(net.hosts, await asyncio.gather(*(start(net, h) for h in net.hosts)), strict=True):
            nodes[host] = child
        pairs = [(a, b) for a in net.hosts for b in net.hosts if a != b]
        commands = Counter[str]()
        reached = await reach_all([[pair] for pair in pairs], net, nodes, commands)
        await reach_again(reached, net, nodes, commands)
    found = reached.values()
    with capsys.disabled():
        print("\n" + "\n".join(f"{r['asker']} {r['target']} {r['edge']} {r['seconds']} {r['rtt_ms']}" for r in found))
    assert all(r["edge"] == "punched" for r in found), found
    assert all(float(str(r["seconds"])) < READY_SECONDS for r in found), found
