"""The format of hidden rows is agreed on when a ring opens, and kept to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from swarm.errors import RunError
from swarm.net.wire import WIRE_FORMATS, encode_tensor
from swarm.ring.frame import parse_frame_untrusted
from swarm.ring.run import Finished, RunRequest, RunResult
from swarm.ring.stage import StageServer
from tests.ring.conftest import TestRing, reference

BLOCKS = [(0, 2), (2, 4), (4, 6)]


async def generate(ring: TestRing, wire: str, tokens: int = 24) -> RunResult:
    ring.desk._wire = lambda request, stages: wire
    request = RunRequest((1, 2, 3, 4), max_tokens=tokens, patience_s=0.2)
    async with aclosing(ring.desk.run(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return event.result
    raise AssertionError("the run has no end")


@pytest.mark.parametrize("wire", WIRE_FORMATS)
async def test_stages_send_each_other_what_the_opening_says(
    make_ring: Callable[..., Any], tiny_model: LlamaForCausalLM, wire: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    whole = StageServer._take_frame

    def watched(self: StageServer, peer: Any, message: Any) -> None:
        frame = parse_frame_untrusted(message)
        seen.append(frame.hidden[0]["wire"] if frame.hidden is not None else None)
        whole(self, peer, message)

    monkeypatch.setattr(StageServer, "_take_frame", watched)
    async with make_ring(BLOCKS) as ring:
        result = await generate(ring, wire)
    assert set(seen) == {None, wire}  # token ids to the head
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

    monkeypatch.setattr("swarm.ring.compute.encode_tensor", coarse)
    async with make_ring(BLOCKS) as ring:
        with pytest.raises(RunError, match="expected hidden rows as float32, found 'int8'"):
            await generate(ring, "float32")
