"""A ring over IPv6 alone, and a node whose address changes while it serves."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from swarm.base.events import silent
from swarm.testbed.cluster import LocalRing, LocalSwarm, ProcessPlace
from tests.lab.lab import HostSpec, Lab, lab
from tests.lab.test_ring_behind_nats import TOKENS, expected, folder
from tests.warm import warm

pytestmark = pytest.mark.lab
__all__ = ["folder"]
NET = "2001:db8:5::"


async def ip(net: Lab, where: str, words: str) -> None:
    await net.run(where, "ip", *words.split())


async def give(net: Lab, host: str, address: str) -> None:
    """An IPv6 address for a host, and the way to it."""
    await ip(net, host, f"-6 addr add {address}/128 dev wan nodad")
    await ip(net, "net", f"-6 route add {address} dev w{host.removeprefix('h')}")


async def only_ipv6(net: Lab) -> None:
    await net.run("net", "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    for number, host in enumerate(net.hosts, 1):
        await give(net, host, f"{NET}{number}")
        await ip(net, host, "-6 route add default dev wan")
        await ip(net, host, "-4 addr flush dev wan")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("moves", [False, pytest.param(True, marks=pytest.mark.soak)])
async def test_a_ring_over_ipv6_alone_whose_node_may_move(folder: Path, tmp_path: Path, moves: bool) -> None:
    async with lab(*(HostSpec(delay_ms=5),) * 3) as net:
        await only_ipv6(net)
        places = [ProcessPlace(net.inside(host), "[::]:7000") for host in net.hosts]
        words = ("--cpu", "--threads", "1", "--dtype", "float32", "--models", str(tmp_path / "models"), "--no-lan")
        swarm = LocalSwarm(
            tmp_path,
            model=str(folder),
            arguments=words,
            places=(*places[:2],),
            requester=places[2],
            patience=120,
            command=warm(),
        )
        ring = LocalRing(swarm, silent)
        try:
            for layers in ((0, 3), (3, 6)):
                await ring.add(layers)

            async def ask() -> None:
                result = await ring.generate(
                    "over the hills", "--raw", "--ignore-eos", "--max-tokens", str(TOKENS), "--models",
                    str(tmp_path / "models"), "--no-lan", timeout=120,
                )  # fmt: skip
                assert [tuple(stage["layers"]) for stage in result["ring"]] == [(0, 3), (3, 6)]
                assert result["token_ids"] == expected(folder, result["prompt_token_ids"])

            await ask()
            if not moves:
                return
            await give(net, "h2", f"{NET}22")
            await ip(net, "h2", f"-6 addr del {NET}2/128 dev wan")
            log = next(path for path in tmp_path.rglob("*.log") if re.search("layers 3-5|3, 6", path.read_text()))
            await _until_said(log, f"[{NET}22]:7000")
            await ask()
        finally:
            await ring.stop()


async def _until_said(log: Path, words: str) -> None:
    async with asyncio.timeout(60):
        while words not in log.read_text():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.2)
