"""What a ring of real processes must survive besides being killed: being stopped, slowed down, told to leave, set back.

docs/reliability.md says which test holds which row.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from transformers import LlamaForCausalLM

from receipts.check.verify import verify
from swarm.base.nodeid import parse_id_untrusted
from swarm.client.client import Requester
from swarm.run.api import RunRequest
from tests.ring.nest import Nest, Node, nest
from tests.ring.test_processes import folder
from tests.ring.trials import Blows, Trial, all_serve, connected, undisturbed

__all__ = ["folder"]  # a fixture, used by name

pytestmark = pytest.mark.asyncio(loop_scope="module")

BLOCKS = [(0, 2), (2, 4), (4, 6)]
SOON = "3"
"""A --grace that is all for handing over: runs are not waited for."""


@dataclass
class Stand:
    """Two nodes for every layer, a requester in this process, and the same model whole."""

    nodes: Nest
    requester: Requester
    whole: LlamaForCausalLM

    async def strike(self, blow: Callable[[Node], None], place: int, tokens: int, after: int = 5) -> Trial:
        """Run plainly; strike the stage at `place` of the ring once `after` tokens are there; check every token."""
        await self.settled()
        request = RunRequest((5, 4, 3, 2, 1), max_tokens=tokens, speculation="plain", draft="none", ignore_eos=True)
        trial = await Blows(self.nodes, self.requester, request, after, place, 0.0, blow).run()
        assert list(trial.result.token_ids) == undisturbed(self.whole, request), trial.reasons
        assert trial.victim is not None
        verdict = verify(Path(str(trial.result.receipt)).read_bytes())
        assert verdict.refusal is None, verdict.refusal
        return trial

    async def settled(self) -> None:
        async with asyncio.timeout(60):
            await all_serve(self.nodes, self.requester)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stand]:
    state = tmp_path_factory.mktemp("faults")
    whole = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    async with nest(folder, state / "nodes", "--grace", SOON) as nodes:
        await nodes.add(BLOCKS[0])
        await asyncio.gather(*(nodes.add(block) for block in (BLOCKS * 2)[1:]))
        async with await connected(nodes, state / "asker", draft="none") as requester:
            yield Stand(nodes, requester, whole)


PLACES = [1, *(pytest.param(place, marks=pytest.mark.soak) for place in (0, 2))]


@pytest.mark.parametrize("place", PLACES)
async def test_a_node_that_is_told_to_leave_hands_its_run_over(stand: Stand, place: int) -> None:
    trial = await stand.strike(lambda node: node.signal(signal.SIGTERM), place, 300)
    assert trial.victim is not None
    assert trial.reasons == ("this node is leaving",)  # told, not found by a deadline or a broken connection
    assert trial.result.recoveries == 0
    assert trial.victim.id not in {stage.node for stage in trial.result.ring}
    assert await trial.victim.ended() == 0
    await stand.nodes.again(trial.victim)


@pytest.mark.parametrize("place", PLACES)
async def test_a_stopped_stage_is_routed_around_and_comes_back(stand: Stand, place: int) -> None:
    trial = await stand.strike(lambda node: node.signal(signal.SIGSTOP), place, 60)
    assert trial.victim is not None
    try:
        assert trial.result.recoveries == 1  # the run ended while its old stage still stood still
        assert trial.victim.id not in {stage.node for stage in trial.result.ring}
    finally:
        trial.victim.signal(signal.SIGCONT)
    await stand.settled()  # what it still had to say of the old epoch has harmed nobody
    again = await stand.strike(lambda node: None, 1, 30)
    assert again.result.recoveries == 0


@pytest.mark.soak
async def test_a_stage_that_stands_still_for_a_minute(stand: Stand) -> None:
    trial = await stand.strike(lambda node: node.signal(signal.SIGSTOP), 1, 60)
    assert trial.victim is not None and trial.result.recoveries == 1
    await asyncio.sleep(60)
    trial.victim.signal(signal.SIGCONT)
    await stand.settled()
    assert (await stand.strike(lambda node: None, 1, 30)).result.recoveries == 0


async def test_a_slow_stage_is_not_taken_for_a_lost_one(stand: Stand) -> None:
    slowed: list[asyncio.Task[None]] = []

    async def slowly(node: Node) -> None:
        try:
            for _ in range(12):
                node.signal(signal.SIGSTOP)
                await asyncio.sleep(0.25)
                node.signal(signal.SIGCONT)
                await asyncio.sleep(0.02)
        finally:
            node.signal(signal.SIGCONT)

    trial = await stand.strike(lambda node: slowed.append(asyncio.ensure_future(slowly(node))), 1, 40)
    slowed[0].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await slowed[0]
    assert trial.result.recoveries == 0 and not trial.reasons


async def test_clocks_that_jump_disturb_no_deadline_and_no_receipt(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stage's clock goes ahead by an hour, then the requester's goes back by one."""
    real = time.time_ns
    there = await stand.strike(lambda node: node.signal(signal.SIGUSR1), 1, 40)
    assert there.result.recoveries == 0

    def back(node: Node) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: real() - 3600 * 10**9)

    here = await stand.strike(back, 1, 40)
    assert here.result.recoveries == 0


async def test_without_a_replacement_a_command_ends_in_good_order(stand: Stand, tmp_path: Path) -> None:
    """--patience runs out: what there is, exit code 1, and a receipt of what happened."""
    await stand.settled()
    receipt = tmp_path / "receipt.json"
    words = ("--raw", "--ignore-eos", "--max-tokens", "440", "--patience", "1", "--speculation", "plain")
    run = await stand.nodes.ask("generate", "Once upon a time", *words, "--receipt", str(receipt))
    await run.speaks()
    lost = [node for node in stand.nodes.nodes if node.layers == (2, 4)]
    for node in lost:
        node.signal(signal.SIGKILL)
    code, out, errors = await run.ended()
    assert code == 1 and out, errors
    assert "the run ended early: a stage was lost and no replacement came" in errors
    assert "Traceback" not in errors
    told = verify(receipt.read_bytes())
    assert told.refusal is None and told.run is not None
    assert re.search(r"swarm_incomplete", receipt.read_text())
    for node in lost:
        await node.ended()
        await stand.nodes.again(node)


@pytest.mark.soak
async def test_a_requester_that_is_killed_leaves_no_memory_behind(stand: Stand) -> None:
    """Stages free its sessions when its lease is over, within a minute."""
    await stand.settled()
    words = ("--raw", "--ignore-eos", "--max-tokens", "440", "--speculation", "plain")
    run = await stand.nodes.ask("generate", "Once upon a time", *words)
    await run.speaks()
    os.kill(run.pid, signal.SIGKILL)
    gossip = stand.requester.gossip

    def held() -> list[int]:
        views = [gossip.member(parse_id_untrusted(node.id)) for node in stand.nodes.nodes]
        return [view.record.kv_capacity - view.record.kv_free for view in views if view is not None]

    async with asyncio.timeout(30):
        while not any(held()):
            await gossip.wait_change()
    async with asyncio.timeout(90):
        while any(held()):
            await gossip.wait_change()
