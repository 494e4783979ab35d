"""A stage that cannot keep what it signs takes no part, and keeps nothing of the runs that it turned away."""

from __future__ import annotations

import errno
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from receipts.check.verify import verify
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.run.api import CommittedTokens, Finished, RunRequest
from swarm.stage.server import StageServer
from tests.ring.conftest import reference
from tests.ring.signed import signed_ring

SPANS = [(0, 2), (2, 4), (4, 6), (2, 4)]
REQUEST = RunRequest((1, 2, 3), max_tokens=10, speculation="plain")


class Full:
    """A file on a full disk."""

    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def truncate(self, size: int) -> None:
        """Nothing came through."""

    def close(self) -> None:
        """As any."""


async def test_a_stage_with_a_full_disk_is_left_out(
    tiny_folder: Path, tiny_model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint: Any = open_model(str(tiny_folder), ModelStore(tmp_path / "models"))
    async with signed_ring(checkpoint, SPANS, tmp_path) as ring:
        full, spare = ring.nodes[1], ring.nodes[3]
        monkeypatch.setattr(full.notary.log, "_file", Full())
        for _ in range(2):
            result = await ring.generate(REQUEST)
            assert list(result.token_ids) == reference(tiny_model, REQUEST.prompt_ids, REQUEST.max_tokens)
            assert spare.identity.id.hex() in {stage.node for stage in result.ring}
            assert verify(Path(str(result.receipt)).read_bytes()).exit_code == 0
        assert full.server is not None and full.server.hosted is not None
        assert not full.server.sessions and full.server.hosted.pool.used_bytes == 0
        monkeypatch.undo()  # the log's own file is closed with the ring


@pytest.mark.parametrize("late", [False, True])
async def test_a_witness_with_a_full_disk_costs_no_run(
    tiny_folder: Path, tiny_model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Full before the order, or full only when the close is to be signed."""
    checkpoint: Any = open_model(str(tiny_folder), ModelStore(tmp_path / "models"))
    async with signed_ring(checkpoint, SPANS[:3], tmp_path, witnesses=2) as ring:
        log = ring.witnesses[0].notary.log
        if not late:
            monkeypatch.setattr(log, "_file", Full())
        async with aclosing(ring.desk.run(REQUEST)) as events:
            async for event in events:
                if isinstance(event, CommittedTokens) and late:
                    monkeypatch.setattr(log, "_file", Full())
                    late = False
                if isinstance(event, Finished):
                    verdict = verify(Path(str(event.result.receipt)).read_bytes())
                    assert verdict.exit_code == 0, verdict.line
        monkeypatch.undo()


async def test_a_stage_that_fails_inside_says_so_at_once(
    tiny_folder: Path, tiny_model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug at one node must not leave a requester waiting for an answer."""
    checkpoint: Any = open_model(str(tiny_folder), ModelStore(tmp_path / "models"))
    async with signed_ring(checkpoint, SPANS, tmp_path) as ring:
        broken = ring.nodes[1].server
        assert isinstance(broken, StageServer)

        def sign(*_: object) -> None:
            raise KeyError("a bug")

        monkeypatch.setattr(broken._forming, "sign", sign)
        result = await ring.generate(REQUEST)
        assert list(result.token_ids) == reference(tiny_model, REQUEST.prompt_ids, REQUEST.max_tokens)
        assert not broken.sessions and broken.hosted is not None and broken.hosted.pool.used_bytes == 0
