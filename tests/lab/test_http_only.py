"""A host whose only way out is HTTP, to one port of one machine: it joins, serves layers, and generates."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from receipts.check.verify import verify
from swarm.base.events import silent
from swarm.testbed.child_process import ChildProcess
from swarm.testbed.cluster import LocalRing, LocalSwarm, ProcessPlace
from tests.lab.lab import HostSpec, Lab, lab
from tests.lab.test_ring_behind_nats import edges
from tests.ring.test_processes import expected, folder
from tests.warm import warm

__all__ = ["folder"]  # a fixture, used by name

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

TOKENS = 12
GATES = ("8080", "8081", "8082")
"""Ports of the server at which its nodes are seen, in HTTP alone."""
RULES = """
table inet shut {
  chain out { type filter hook output priority 0; policy drop;
    oif lo accept; ct state established accept; tcp dport { %s } accept; }
  chain in { type filter hook input priority 0; policy drop;
    iif lo accept; ct state established accept; }
}
"""


async def shut(net: Lab, host: str, ports: tuple[str, ...]) -> None:
    """Nobody reaches `host`; it reaches these ports alone."""
    rules = net.folder / "rules.nft"
    rules.write_text(RULES % ", ".join(ports))
    await net.run(host, "nft", "-f", str(rules))


async def wall(net: Lab, port: str, to: str) -> ChildProcess:
    child = await net.start("s", sys.executable, "-m", "tests.httponly", f"{net.address('s')}:{port}", to)
    await child.event("ready", 60)
    return child


@asynccontextmanager
async def behind(folder: Path, state: Path, layers: list[tuple[int, int]]) -> AsyncIterator[tuple[Lab, LocalRing]]:
    """A node on the server for each of `layers`, told of at a port that lets in HTTP alone, and a host "h1"."""
    async with lab(HostSpec("cone")) as net:
        here = net.address("s")
        inside = ProcessPlace(net.inside("h1"), "0.0.0.0:7000")
        places = *(ProcessPlace(net.inside("s"), f"{here}:{7000 + i}") for i in range(len(layers))), inside
        words = ("--cpu", "--threads", "1", "--dtype", "float32", "--models", str(state / "models"))
        swarm = LocalSwarm(
            state, str(folder), arguments=words, places=places, requester=inside, patience=120, command=warm()
        )
        ring = LocalRing(swarm, silent)
        try:
            for i, block in enumerate(layers):
                await wall(net, GATES[i], f"{here}:{7000 + i}")
                await ring.add(block, "--advertise", f"{here}:{GATES[i]}")
            yield net, ring
        finally:
            await ring.stop()


async def generated(folder: Path, state: Path, ring: LocalRing, *more: str) -> set[str]:
    """Generate from the shut host, check everything, and give the kinds of the ring's edges."""
    receipt = state / "receipt.json"
    words = ("--raw", "--ignore-eos", "--max-tokens", str(TOKENS), "--models", str(state / "models"), "--no-lan")
    result = await ring.generate("over the hills", *words, "--receipt", str(receipt), *more, timeout=120)
    assert [tuple(stage["layers"]) for stage in result["ring"]] == [(0, 2), (2, 4), (4, 6)]
    assert result["token_ids"] == expected(folder, result["prompt_token_ids"], TOKENS)
    assert verify(receipt.read_bytes()).refusal is None
    return set().union(*edges(receipt))


async def test_a_host_that_can_only_speak_http_joins_and_generates(folder: Path, tmp_path: Path) -> None:
    async with behind(folder, tmp_path, [(0, 2), (2, 4)]) as (net, ring):
        await shut(net, "h1", GATES[:2])
        await ring.add((4, 6))  # on that host
        kinds = await generated(folder, tmp_path, ring)
        assert "http" in kinds and kinds <= {"http", "direct", "reverse"}  # not HTTP: within that host


@pytest.mark.soak  # the same tunnel without a proxy stands above, the proxy's words in tests/swarm/net
async def test_a_host_whose_only_way_out_is_a_proxy_generates(folder: Path, tmp_path: Path) -> None:
    async with behind(folder, tmp_path, [(0, 2), (2, 4), (4, 6)]) as (net, ring):
        await wall(net, "3128", "proxy")
        await shut(net, "h1", ("3128",))
        proxy = f"http://{net.address('s')}:3128"
        assert await generated(folder, tmp_path, ring, "--http-proxy", proxy) == {"http"}
