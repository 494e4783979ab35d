"""Starting and stopping a local swarm, with a stand-in for the node so that no model is loaded."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.base.config import parse_address
from swarm.base.errors import RunError, UsageError
from swarm.testbed.cluster import LocalSwarm, local_ring, split_layers

FAKE = (sys.executable, str(Path(__file__).with_name("fake_node.py")))


@pytest.fixture
def swarm(tmp_path: Path) -> LocalSwarm:
    return LocalSwarm(state=tmp_path, command=FAKE, arguments=("--cpu",), patience=60.0)


@given(st.integers(1, 200), st.data())
def test_layers_are_split_whole_and_evenly(n_layers: int, data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, n_layers))
    ranges = split_layers(n_layers, parts)
    assert [layer for a, b in ranges for layer in range(a, b)] == list(range(n_layers))
    sizes = [b - a for a, b in ranges]
    assert max(sizes) - min(sizes) <= 1 and len(ranges) == parts


@pytest.mark.parametrize("parts", [0, 4])
def test_a_split_into_too_many_or_no_parts_is_refused(parts: int) -> None:
    with pytest.raises(UsageError, match="1 to 3 nodes"):
        split_layers(3, parts)


async def hello(address: str) -> float:
    """Seconds from dialling to the answer."""
    begun = time.monotonic()
    reader, writer = await asyncio.open_connection(*parse_address(address))
    writer.write(b"hello\n")
    assert await asyncio.wait_for(reader.readline(), 30) == b"hello\n"
    writer.close()
    return time.monotonic() - begun


async def test_nodes_start_in_order_and_leave_cleanly(swarm: LocalSwarm) -> None:
    async with local_ring(swarm, [(0, 1), (1, 2), (2, 3)]) as ring:
        assert [node.layers for node in ring.nodes] == [(0, 1), (1, 2), (2, 3)]
        assert ring.invite == f"swarm:{ring.nodes[0].ready['advertise']}"
        said = await ring.generate("hi", "--threads", "1")
        assert said == {"text": "hi", "swarm": ring.invite, "state": str(ring.requester_state)}
        odd = "one\u2028line\u0085of text\x0b"
        assert (await ring.generate(odd))["text"] == odd, "only a line feed ends a line of JSON"
        children = [node.child for node in ring.nodes]
    assert [child.process.returncode for child in children] == [0, 0, 0]


async def test_emulated_distance_stands_before_every_node(swarm: LocalSwarm) -> None:
    async with local_ring(replace(swarm, rtt_ms=40.0), [(0, 1), (1, 2)]) as ring:
        for node in ring.nodes:
            assert node.ready["advertise"] != node.ready["listen"]
            assert await hello(node.ready["advertise"]) >= 0.080  # a dial and a request: two round trips
        ring.set_rtt(80.0)
        while await hello(ring.nodes[0].ready["advertise"]) < 0.160:
            pass


async def test_a_killed_node_no_longer_invites(swarm: LocalSwarm) -> None:
    async with local_ring(swarm, [(0, 1), (1, 2)]) as ring:
        first, second = ring.nodes
        first.send_signal(signal.SIGKILL)
        await first.child.process.wait()
        assert ring.invite == second.ready["invite"]
        third = await ring.add((0, 1))
        assert third.layers == (0, 1)
        with pytest.raises(UsageError, match="no emulated link"):
            third.link("down")


async def test_a_node_that_cannot_start_is_quoted_and_nothing_stays(swarm: LocalSwarm) -> None:
    with pytest.raises(RunError, match=r"node-1 did not start: it ended with code 1: no model named absent"):
        async with local_ring(replace(swarm, model="absent", rtt_ms=1.0), [(0, 1)]):
            pytest.fail("it has started")


async def test_a_node_that_ignores_sigterm_is_killed(swarm: LocalSwarm) -> None:
    async with local_ring(replace(swarm, model="deaf", grace=0.1), [(0, 1)]) as ring:
        child = ring.nodes[0].child
    assert child.process.returncode == -signal.SIGKILL


async def test_a_failed_command_is_quoted(swarm: LocalSwarm) -> None:
    async with local_ring(swarm, [(0, 1)]) as ring:
        with pytest.raises(RunError, match="no model named absent"):
            await ring.generate("hi", "--model", "absent")


async def test_an_interrupted_start_leaves_nothing_running(swarm: LocalSwarm) -> None:
    started: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

    async def start() -> None:
        async with local_ring(swarm, [(0, 1), (1, 2)]) as ring:
            started.set_result([node.child.process.pid for node in ring.nodes])
            await asyncio.Event().wait()

    task = asyncio.create_task(start())
    pids = await asyncio.wait_for(started, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(pids) == 2 and not any(psutil.pid_exists(pid) for pid in pids)
