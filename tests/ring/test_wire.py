"""The format of hidden rows is agreed on when a ring opens, and kept to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from swarm.base.errors import RunError
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.net.channel.wire import WIRE_FORMATS, encode_tensor
from swarm.ring.frame import Frame
from swarm.run.api import Finished, RunRequest, RunResult
from swarm.run.receipt import RunAccount
from tests.ring.conftest import TestRing, reference
from tests.ring.signed import signed_ring

BLOCKS = [(0, 2), (2, 4), (4, 6)]


async def generate(ring: TestRing, wire: str, tokens: int = 24) -> RunResult:
    ring.desk.router.wire_format = wire
    request = RunRequest((1, 2, 3, 4), max_tokens=tokens, patience_s=0.2)
    async with aclosing(ring.desk.run(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return event.result
    raise AssertionError("the run has no end")


@pytest.mark.parametrize("wire", WIRE_FORMATS)
async def test_stages_send_each_other_what_the_opening_says(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, wire: str, frames_taken: list[tuple[int, Frame]]
) -> None:
    async with make_ring(BLOCKS) as ring:
        result = await generate(ring, wire)
    wires = {None if frame.hidden is None else frame.hidden[0]["wire"] for _, frame in frames_taken}
    assert wires == {None, wire}  # token ids to the head
    assert result.new_tokens == 24
    if wire == "float32":
        assert list(result.token_ids) == reference(tiny_model, (1, 2, 3, 4), 24)


async def test_a_format_that_a_node_cannot_read_is_refused_when_the_ring_opens(make_ring: Callable[..., Any]) -> None:
    async with make_ring(BLOCKS) as ring:
        with pytest.raises(RunError, match="wire format of float32, .*, found 'int3'"):
            await generate(ring, "int3")


async def test_a_stage_that_sends_coarser_rows_than_agreed_is_found_out(
    make_ring: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def coarse(tensor: torch.Tensor, wire: str) -> Any:
        return encode_tensor(tensor, "int8")

    monkeypatch.setattr("swarm.stage.compute.encode_tensor", coarse)
    async with make_ring(BLOCKS) as ring:
        with pytest.raises(RunError, match="expected hidden rows as float32, found 'int8'"):
            await generate(ring, "float32")


async def test_stages_accept_no_order_for_another_format_than_the_rings(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a receipt would promise finer rows than those that crossed."""

    def promising(plan: Any, request: Any, stages: Any, wire: str, run: str) -> RunAccount:
        return RunAccount(plan, request, stages, "float32", run)

    monkeypatch.setattr("swarm.run.run_loop.RunAccount", promising)
    checkpoint = open_model(str(tiny_folder), ModelStore(tmp_path / "models"))
    async with signed_ring(checkpoint, BLOCKS, tmp_path, wire="int8") as ring:
        with pytest.raises(RunError, match="differs from the ring in its wire format: float32 and int8"):
            await ring.generate(RunRequest((1, 2, 3, 4), max_tokens=8, patience_s=0.2))
