"""A ring of real processes over real kernel TCP with loss, jitter and partitions between all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from swarm.testbed.cluster import LocalRing, LocalSwarm, local_ring
from tests.lab.lab import HostSpec, Lab, lab
from tests.ring.test_processes import LAYERS, busy, expected, folder
from tests.warm import warm

__all__ = ["folder"]  # a fixture, used by name

pytestmark = pytest.mark.lab

BAD = HostSpec(delay_ms=10.0, loss_percent=1.0, jitter_ms=5.0)
"""Two such hosts are 40 to 60 ms apart and lose 2% each way."""


@asynccontextmanager
async def wan(
    folder: Path,
    state: Path,
    host: HostSpec,
    layers: list[tuple[int, int]] = LAYERS,
    command: tuple[str, ...] | None = None,
) -> AsyncIterator[tuple[Lab, LocalRing]]:
    """A node for each of `layers` and a requester, each on a host of this kind; the requester's is the last."""
    words = ("--cpu", "--threads", "1", "--dtype", "float32", "--models", str(state / "models"))
    async with lab(*(host,) * (len(layers) + 1), single_packets=True) as net:
        *places, asker = (net.place(name) for name in net.hosts)
        swarm = LocalSwarm(
            state, str(folder), arguments=words, places=tuple(places), requester=asker, command=command or warm()
        )
        async with local_ring(swarm, layers) as ring:
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
        words = ("--max-tokens", "100", "--speculation", "plain", *common)
        asking = asyncio.create_task(ring.generate("Once upon", *words))
        while await packets(net, "h4") < quiet + 120:  # the requester is well under way
            await asyncio.sleep(0.05)
            assert not asking.done()
        net.link("h2", "down")
        await asyncio.sleep(3.0)
        net.link("h2", "up")
        result = await asking
        assert result["token_ids"] == expected(folder, result["prompt_token_ids"], 100)
        assert result["finish_reason"] == "length"


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", [30, 120])
async def test_a_long_partition_is_routed_around_and_heals(folder: Path, tmp_path: Path, seconds: int) -> None:
    """The host of a stage is cut off from everybody, in silence, for so long at least and until the run has ended."""
    common = ("--ignore-eos", "--models", str(tmp_path / "models"), "--speculation", "plain")
    async with wan(folder, tmp_path, HostSpec(delay_ms=12.5), [*LAYERS, (2, 4)]) as (net, ring):
        asking = asyncio.create_task(ring.generate("Once upon", "--max-tokens", "300", *common))
        twins = [node for node in ring.nodes if node.layers == (2, 4)]
        victim = await busy(ring, twins)
        host = next(name for name in net.hosts if str(victim.ready["listen"]).startswith(net.address(name) + ":"))
        net.link(host, "down")
        begun = asyncio.get_running_loop().time()
        result = await asking
        assert result["recoveries"] >= 1
        assert result["token_ids"] == expected(folder, result["prompt_token_ids"], 300)
        await asyncio.sleep(max(0.0, begun + seconds - asyncio.get_running_loop().time()))
        net.link(host, "up")
        async with asyncio.timeout(120):
            while {node["standing"] for node in (await status(ring))["nodes"]} != {"up"}:
                pass  # to ask takes its time
        again = await ring.generate("Once upon", "--max-tokens", "40", *common)
        assert again["token_ids"] == result["token_ids"][:40] and again["recoveries"] == 0


async def status(ring: LocalRing) -> dict[str, Any]:
    return await ring.run("status", "--swarm", ring.invite, "--state", str(ring.swarm.state / "looker"))


@pytest.mark.soak
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("minutes", [20, 60])
async def test_long_loss_and_jitter(folder: Path, tmp_path: Path, minutes: int) -> None:
    """Every answer is exact, and no node grows."""
    common = ("--ignore-eos", "--models", str(tmp_path / "models"), "--max-tokens", "200", "--draft", "suffix")
    host = HostSpec(delay_ms=12.5, loss_percent=1.0, jitter_ms=10.0)
    async with wan(folder, tmp_path, host, command=LocalSwarm.command) as (_, ring):
        begun = asyncio.get_running_loop().time()
        sizes: list[dict[int, tuple[int, int]]] = []
        while asyncio.get_running_loop().time() < begun + 60 * minutes:
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
