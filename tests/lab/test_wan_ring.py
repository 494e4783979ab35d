"""A ring of real processes over real kernel TCP with loss, jitter and partitions between all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from swarm.local import LocalRing, LocalSwarm, local_ring
from tests.lab.lab import HostSpec, Lab, lab
from tests.ring.test_processes import LAYERS, expected, folder

__all__ = ["folder"]  # a fixture, used by name

pytestmark = pytest.mark.lab

BAD = HostSpec(delay_ms=10.0, loss_percent=1.0, jitter_ms=5.0)
"""Two such hosts are 40 to 60 ms apart and lose 2% each way."""


@asynccontextmanager
async def wan(folder: Path, state: Path, host: HostSpec) -> AsyncIterator[tuple[Lab, LocalRing]]:
    """Three nodes and a requester, each on a host of this kind."""
    words = ("--cpu", "--threads", "1", "--dtype", "float32", "--models", str(state / "models"))
    async with lab(*(host,) * 4, single_packets=True) as net:
        *places, asker = (net.place(name) for name in net.hosts)
        swarm = LocalSwarm(state, str(folder), arguments=words, places=tuple(places), requester=asker)
        async with local_ring(swarm, LAYERS) as ring:
            yield net, ring


async def packets(net: Lab, host: str) -> int:
    out, back = await net.stats(host)
    return out.sent + back.sent


async def test_a_lossy_jittery_path_and_a_partition_change_no_token(folder: Path, tmp_path: Path) -> None:
    common = ("--ignore-eos", "--models", str(tmp_path / "models"))
    async with wan(folder, tmp_path, BAD) as (net, ring):
        drafted = await ring.generate("Hello there", "--max-tokens", "40", "--draft", "suffix", *common)
        assert drafted["token_ids"] == expected(folder, drafted["prompt_token_ids"], 40)
        quiet = await packets(net, "h4")
        words = ("--max-tokens", "150", "--speculation", "plain", *common)
        asking = asyncio.create_task(ring.generate("Once upon", *words))
        while await packets(net, "h4") < quiet + 200:  # the requester is well under way
            await asyncio.sleep(0.05)
            assert not asking.done()
        net.link("h2", "down")
        await asyncio.sleep(3.0)
        net.link("h2", "up")
        result = await asking
        assert result["token_ids"] == expected(folder, result["prompt_token_ids"], 150)
        assert result["finish_reason"] == "length"


@pytest.mark.soak
@pytest.mark.timeout(5400)
async def test_an_hour_of_loss_and_jitter(folder: Path, tmp_path: Path) -> None:
    """Every answer is exact, and no node grows."""
    common = ("--ignore-eos", "--models", str(tmp_path / "models"), "--max-tokens", "200", "--draft", "suffix")
    async with wan(folder, tmp_path, HostSpec(delay_ms=12.5, loss_percent=1.0, jitter_ms=10.0)) as (_, ring):
        begun = asyncio.get_running_loop().time()
        sizes: list[dict[int, tuple[int, int]]] = []
        while asyncio.get_running_loop().time() < begun + 3600:
            result = await ring.generate(f"Run {len(sizes)}", *common)
            assert result["token_ids"] == expected(folder, result["prompt_token_ids"], 200)
            sizes.append({node.child.process.pid: footprint(node.child.process.pid) for node in ring.nodes})
    early, late = sizes[len(sizes) // 10], sizes[-1]
    for pid, (memory, files) in late.items():
        assert memory < early[pid][0] + (64 << 20)
        assert files <= early[pid][1] + 4


def footprint(pid: int) -> tuple[int, int]:
    """Resident bytes and open descriptors of a process."""
    import psutil

    process = psutil.Process(pid)
    return process.memory_info().rss, process.num_fds()
