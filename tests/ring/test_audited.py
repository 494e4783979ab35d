"""Audits of runs that were not one straight line: private ends, recovered epochs, and beginnings from other runs."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from receipts.check.verdict import Level, Standing
from receipts.check.verify import verify
from receipts.format.errors import Refusal
from receipts.record.rows import DAY_S
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.sampler import Sampling
from swarm.net.channel.message import Message
from swarm.ring.frame import Frame
from swarm.run.api import CommittedTokens, Finished, RunRequest
from swarm.stage import sender

from .signed import LIES, signed_ring
from .test_signed import PROMPT, SPANS, audited, replaying, wide

__all__ = ["wide"]


@pytest.mark.parametrize("speculation", ["plain", "stream"])
async def test_a_private_run_has_a_receipt(wide: Checkpoint, tmp_path: Path, speculation: str) -> None:
    async with signed_ring(wide, [(1, 4), (4, 7)], tmp_path) as ring:
        request = RunRequest(PROMPT, 16, speculation=speculation, private=1)  # type: ignore[arg-type]
        path = Path(str((await ring.generate(request)).receipt))
        verdict = verify(path.read_bytes())
        assert (verdict.exit_code, verdict.level) == (0, Level.SIGNED), verdict.line
        assert verdict.standing_of("own layers") is Standing.CLAIMED
        assert verdict.run is not None and verdict.run.last.own is not None and verdict.run.last.own.answers >= 16
        assert all(margin > 0 for margin in verdict.disclosed.tokens.margins_ppm)  # type: ignore[union-attr]
        replayed = await asyncio.to_thread(verify, path.read_bytes(), replaying(path, wide))
        assert (replayed.exit_code, replayed.level) == (0, Level.REPLAYED), replayed.line
        checked = await audited(ring, path, wide)
        assert (checked.exit_code, checked.refusal, checked.level) == (4, None, Level.SIGNED), checked.line
        nodes = [node.identity.id.hex() for node in ring.nodes]
        assert all(checked.standing_of("audit", node) is Standing.PROVEN for node in nodes)


async def test_a_lying_stage_of_a_private_run_is_caught(wide: Checkpoint, tmp_path: Path) -> None:
    for stage in (0, 1):
        folder = tmp_path / str(stage)
        async with signed_ring(wide, [(1, 4), (4, 7)], folder, twists={stage: LIES["int4"]}) as ring:
            result = await ring.generate(RunRequest(PROMPT, 8, speculation="plain", private=1))
            verdict = await audited(ring, Path(str(result.receipt)), wide)
            assert verdict.refusal is Refusal.AUDIT and ring.nodes[stage].identity.id.hex()[:8] in verdict.line


@pytest.mark.parametrize("speculation", ["plain", "stream"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
async def test_survivors_of_a_recovered_run_are_audited(
    wide: Checkpoint, tmp_path: Path, dtype: torch.dtype, speculation: str
) -> None:
    async with signed_ring(wide, [*SPANS, SPANS[1]], tmp_path, dtype=dtype) as ring:
        request = RunRequest(PROMPT, max_tokens=40, speculation=speculation)  # type: ignore[arg-type]
        result = await ring.generate(request, drop_after=12)
        assert result.recoveries == 1 and result.new_tokens == 40
        verdict = await audited(ring, Path(str(result.receipt)), wide, 60)
        # What the lost node computed before is opened by nobody, and twelve tokens were drawn from it.
        assert (verdict.exit_code, verdict.level, verdict.refusal) == (4, Level.SIGNED, None), verdict.line
        lost, newcomer = (ring.nodes[index].identity.id.hex() for index in (1, 3))
        tail = ring.nodes[2].identity.id.hex()
        assert f"drawn in epoch 0: {lost[:8]} opened nothing" in verdict.line
        assert f"{tail[:8]} began from rows that the stage before it does not open" in verdict.line
        texts = {claim.about: claim.text for claim in verdict.claims if claim.subject == "audit"}
        assert "signed no root" in texts[lost] and "own word" not in texts[newcomer]
        assert verdict.run is not None
        for survivor in (ring.nodes[0], ring.nodes[2]):
            end = verdict.run.last.ends[survivor.identity.id.hex()]
            assert len(end.history) == 1 and end.history[0].kept > len(PROMPT)
            assert "own word" in texts[survivor.identity.id.hex()]  # of the interrupted epoch


@pytest.mark.parametrize("stage", [0, 2])
async def test_a_survivor_that_lies_is_caught(wide: Checkpoint, tmp_path: Path, stage: int) -> None:
    async with signed_ring(wide, [*SPANS, SPANS[1]], tmp_path, twists={stage: LIES["int8"]}) as ring:
        result = await ring.generate(RunRequest(PROMPT, max_tokens=48, speculation="plain"), drop_after=24)
        verdict = await audited(ring, Path(str(result.receipt)), wide, 60)
        assert verdict.refusal is Refusal.AUDIT and ring.nodes[stage].identity.id.hex()[:8] in verdict.line


async def test_a_survivor_whose_layers_changed_has_one_run_number(wide: Checkpoint, tmp_path: Path) -> None:
    """The last stage takes the lost one's layers over: another session, but still the same run of that node."""
    async with signed_ring(wide, [(0, 3), (3, 6), (3, 8)], tmp_path) as ring:
        result = await ring.generate(RunRequest(PROMPT, max_tokens=24, speculation="plain"), drop_after=6)
        assert result.recoveries == 1
        path = Path(str(result.receipt))
        verdict = verify(path.read_bytes())
        assert verdict.exit_code == 0, verdict.line
        assert verdict.run is not None and [s.first for s in verdict.run.last.plan] == [0, 3]
        assert len(verdict.run.epochs[0].ends) == 2
        checked = await audited(ring, path, wide, 40)
        assert (checked.exit_code, checked.level, checked.refusal) == (4, Level.SIGNED, None), checked.line
        assert "were drawn in epoch 0" in checked.line and verdict.line.count(";") == 0


SAMPLINGS = [Sampling(), Sampling(temperature=0.7, repetition_penalty=1.3, seed=9)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "penalised"])
async def test_runs_that_began_from_others_are_audited(wide: Checkpoint, tmp_path: Path, sampling: Sampling) -> None:
    """A conversation: each turn begins from what the stages hold of the turn before, with other scratch slots."""
    async with signed_ring(wide, SPANS, tmp_path, keep_s=60.0) as ring:
        prompt, modes = PROMPT, ("plain", "stream", "chain")
        for turn, mode in enumerate(modes):
            result = await ring.generate(RunRequest(prompt, 10, sampling, speculation=mode))  # type: ignore[arg-type]
            path = Path(str(result.receipt))
            assert (result.cached_prompt_tokens > 30) == (turn > 0)
            verdict = verify(path.read_bytes())
            assert verdict.exit_code == 0 and verdict.run is not None, verdict.line
            assert {len(end.history) for end in verdict.run.last.ends.values()} == {turn}
            checked = await audited(ring, path, wide)
            assert (checked.exit_code, checked.level) == (0, Level.SAMPLED), (turn, checked.line)
            prompt = (*prompt, *result.token_ids, 3, 4, 5)
        # The first turn's rows are gone: what the last one began from cannot be opened, and verify says so.
        for node in ring.nodes:
            store = node.notary.rows
            assert store is not None
            store.expire(int(time.time()) + 2 * DAY_S, most=1)
        gone = await audited(ring, path, wide)
        assert (gone.exit_code, gone.refusal) == (4, None) and "did not open" in gone.line


async def test_a_stage_that_drops_the_tokens_a_penalty_needs_is_caught(
    wide: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An honest tail then draws as if nothing had been said before: every row and answer is right by what came in."""
    encode = sender.encode_frame

    def stripped(frame: Frame) -> Message:
        tokens = np.full(len(frame.rows), -1, np.int32)
        return encode(replace(frame, rows=replace(frame.rows, token=tokens)))

    monkeypatch.setattr(sender, "encode_frame", stripped)
    async with signed_ring(wide, SPANS, tmp_path) as ring:
        result = await ring.generate(RunRequest(PROMPT, 12, SAMPLINGS[1], speculation="plain"))
        verdict = await audited(ring, Path(str(result.receipt)), wide)
        assert verdict.refusal is Refusal.AUDIT and "another text" in verdict.line, verdict.line


async def test_a_liar_that_began_from_another_run_is_caught(wide: Checkpoint, tmp_path: Path) -> None:
    async with signed_ring(wide, SPANS, tmp_path, keep_s=60.0, twists={1: LIES["int8"]}) as ring:
        first = await ring.generate(RunRequest(PROMPT, 8, speculation="plain"))
        result = await ring.generate(RunRequest((*PROMPT, *first.token_ids, 3), 24, speculation="plain"))
        assert result.cached_prompt_tokens > 30
        verdict = await audited(ring, Path(str(result.receipt)), wide)
        assert verdict.refusal is Refusal.AUDIT and ring.nodes[1].identity.id.hex()[:8] in verdict.line


@pytest.mark.parametrize("speculation", ["plain", "chain", "tree", "stream"])
async def test_the_tail_accounts_for_runs_that_end_themselves(
    wide: Checkpoint, tmp_path: Path, speculation: str
) -> None:
    """The token that ends a run is drawn by the tail and counted by both, whatever was drafted beyond it."""
    async with signed_ring(wide, SPANS, tmp_path) as ring:
        whole = await ring.generate(RunRequest(PROMPT, 24, speculation="plain"))
    ends = frozenset({whole.token_ids[13]})
    async with signed_ring(wide, SPANS, tmp_path / "eos", eos=ends) as ring:
        result = await ring.generate(RunRequest(PROMPT, 24, speculation=speculation))  # type: ignore[arg-type]
        assert result.finish_reason == "stop" and result.new_tokens <= 14
        data = Path(str(result.receipt)).read_bytes()
        verdict = verify(data)
        assert verdict.exit_code == 0 and verdict.run is not None, verdict.line
        assert verdict.standing_of("tokens") is Standing.COSIGNED
        tail = verdict.run.last.tail
        assert tail is not None and tail.count == result.new_tokens


async def test_the_tail_accounts_for_runs_ended_by_a_stop_string(wide: Checkpoint, tmp_path: Path) -> None:
    async with signed_ring(wide, SPANS, tmp_path) as ring:
        whole = await ring.generate(RunRequest(PROMPT, 24, speculation="plain"))
        stop = f" {whole.token_ids[9]} {whole.token_ids[10]}"
        for speculation in ("plain", "stream"):
            request = RunRequest(PROMPT, 24, speculation=speculation, stop=(stop,))  # type: ignore[arg-type]
            result = await ring.generate(request)
            assert result.finish_reason == "stop"
            verdict = verify(Path(str(result.receipt)).read_bytes())
            assert (verdict.exit_code, verdict.standing_of("tokens")) == (0, Standing.COSIGNED), verdict.line


async def test_the_margin_of_a_cancelled_private_run(wide: Checkpoint, tmp_path: Path) -> None:
    async with signed_ring(wide, [(1, 7)], tmp_path) as ring:
        path = tmp_path / "left.json"
        async with aclosing(ring.desk.run(RunRequest(PROMPT, max_tokens=300, private=1), path)) as events:
            async for event in events:
                assert not isinstance(event, Finished)
                if isinstance(event, CommittedTokens):
                    break
        verdict = verify(path.read_bytes())
        assert (verdict.exit_code, verdict.level) == (0, Level.SIGNED), verdict.line
        assert verdict.run is not None and verdict.run.close.outcome == "cancelled"
