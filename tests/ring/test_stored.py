"""A ring of processes whose weights stay as they are stored: exact to one process, audited and replayed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from receipts.check.verify import verify
from swarm.cli.main import main
from swarm.model.block import load_block
from swarm.model.dtype import choose_dtype
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.quant.native import library
from swarm.model.rows import Layout, no_commits
from swarm.model.weights_as import PACKED
from swarm.ring.certain_rows import certain_rows
from swarm.testbed.cluster import LocalSwarm, local_ring
from tests.warm import warm

CPU = torch.device("cpu")
LAYERS = [(0, 10), (10, 20), (20, 30)]
TOKENS = 24

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")


def greedy(models: Path, prompt: list[int], tokens: int) -> list[int]:
    """What one process answers, token by token."""
    checkpoint = ModelStore(models).open(DEFAULT_MODEL, None)
    block = load_block(checkpoint, 0, 30, CPU, choose_dtype("auto", CPU), weights="auto")
    layout = Layout(0, 256)
    kv = KVPool(block, 1 << 40).open(layout, 0, 30)
    found: list[int] = []
    rows, at = prompt, 0
    for _ in range(tokens):
        logits = block.forward([Job(kv, no_commits(), certain_rows(layout, at, rows, True), None)])[0]
        at, rows = at + len(rows), [int(logits[-1].argmax())]
        found += rows
    return found


@pytest.mark.timeout(600)  # seven processes of a real model, one after the other on a busy machine
async def test_three_nodes_with_stored_weights_answer_like_one_and_pass_audit_and_replay(tmp_path: Path) -> None:
    words = ("--cpu", "--threads", "1", "--weights-as", "stored", "--models", str(tmp_path / "models"))
    async with local_ring(LocalSwarm(tmp_path, model=DEFAULT_MODEL, arguments=words, command=warm()), LAYERS) as ring:
        common = ("--ignore-eos", "--models", str(tmp_path / "models"), "--max-tokens", str(TOKENS))
        result = await ring.generate("Why is the sky blue?", "--speculation", "plain", *common)
        assert result["token_ids"] == greedy(tmp_path / "models", result["prompt_token_ids"], TOKENS)
        drafted = await ring.generate("Why is the sky blue?", "--draft", "suffix", *common)
        assert drafted["token_ids"] == result["token_ids"]  # a row's bits do not depend on the rows beside it
        account = verify(Path(result["receipt"]).read_bytes()).run
        assert account is not None and account.order.dtype == PACKED
        where = ("--swarm", ring.invite, "--state", str(tmp_path / "checker"), "--models", str(tmp_path / "models"))
        check = ["verify", result["receipt"], "--audit", "3", "--replay", "--require", "audit,replay", *where]
        assert await asyncio.to_thread(main, check) == 0
