"""A stage that nobody can replace is killed, started again under its old identity, and goes on with the same run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from receipts.check.verify import verify
from swarm.run.api import RunRequest
from tests.ring.nest import Node, nest
from tests.ring.test_processes import folder
from tests.ring.trials import Blows, all_serve, connected, kill, undisturbed

__all__ = ["folder"]  # a fixture, used by name

BLOCKS = [(0, 2), (2, 4), (4, 6)]


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_killed_stage_comes_back_into_its_run(folder: Path, tmp_path: Path, place: int) -> None:
    async with nest(folder, tmp_path / "nodes") as nodes:
        await nodes.add(BLOCKS[0])
        await asyncio.gather(*(nodes.add(block) for block in BLOCKS[1:]))
        async with await connected(nodes, tmp_path / "asker", draft="none") as requester:
            async with asyncio.timeout(60):
                await all_serve(nodes, requester)
            back: list[asyncio.Task[Node]] = []

            async def again(node: Node) -> Node:
                await node.ended()
                return await nodes.again(node)

            def blow(node: Node) -> None:
                kill(node)
                back.append(asyncio.ensure_future(again(node)))

            request = RunRequest((5, 4, 3), max_tokens=40, speculation="plain", ignore_eos=True, patience_s=90.0)
            trial = await Blows(nodes, requester, request, 10, place, 0.0, blow).run()
            assert trial.victim is not None and (await back[0]).id == trial.victim.id
        whole = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        assert list(trial.result.token_ids) == undisturbed(whole, request), trial.reasons
        verdict = verify(Path(str(trial.result.receipt)).read_bytes())
        assert verdict.exit_code == 0 and verdict.run is not None, verdict.line
        served = [entry.outcome for entry in verdict.run.close.served if entry.node == trial.result.ring[place].node]
        assert served[0] == "lost" and served[-1] == "ended"
