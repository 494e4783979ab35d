"""Real node processes on loopback, asked through the command line as a user would."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from receipts.check.verify import verify
from swarm.base.errors import RunError
from swarm.cli.main import main
from swarm.testbed.cluster import LocalNode, LocalRing, LocalSwarm, local_ring
from tests.draft.tapped import save_block
from tests.swarm.serve.tiny import tiny_tokenizer
from tests.warm import warm

LAYERS = [(0, 2), (2, 4), (4, 6)]
FIELDS = {
    "text", "token_ids", "prompt_token_ids", "new_tokens", "seconds", "ttft_seconds", "tokens_per_second", "passes",
    "tokens_per_pass", "rows_sent", "acceptance", "drafter", "speculation", "ring", "finish_reason", "receipt",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with a tokenizer of bytes, as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("bytes")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.4,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@asynccontextmanager
async def ring_of(
    folder: Path,
    state: Path,
    layers: list[tuple[int, int]],
    rtt_ms: float = 0.0,
    command: tuple[str, ...] | None = None,
) -> AsyncIterator[LocalRing]:
    words = ("--cpu", "--threads", "1", "--dtype", "float32", "--models", str(state / "models"))
    async with local_ring(
        LocalSwarm(state, model=str(folder), arguments=words, rtt_ms=rtt_ms, command=command or warm()), layers
    ) as ring:
        yield ring


def expected(folder: Path, ids: list[int], tokens: int) -> list[int]:
    """What transformers generates, greedily, in float32."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None
        )
    return [int(t) for t in out[0, len(ids) :]]


async def test_a_ring_of_processes_answers_exactly_and_leaves_a_receipt(folder: Path, tmp_path: Path) -> None:
    """Begun as a user would, imports and all."""
    async with ring_of(folder, tmp_path, LAYERS, command=LocalSwarm.command) as ring:
        common = ("--ignore-eos", "--models", str(tmp_path / "models"))
        first = await ring.generate("Hello there", "--max-tokens", "20", "--speculation", "plain", *common)
        assert set(first) >= FIELDS
        assert first["token_ids"] == expected(folder, first["prompt_token_ids"], 20)
        assert [stage["layers"] for stage in first["ring"]] == [list(pair) for pair in LAYERS]
        again = await ring.generate("Hello there", "--max-tokens", "20", "--draft", "suffix", *common)
        assert again["token_ids"] == first["token_ids"]
        private = await ring.generate("Hello there", "--max-tokens", "20", "--private", "1", *common)
        assert private["token_ids"] == first["token_ids"]
        receipt = Path(first["receipt"])
        assert await asyncio.to_thread(main, ["verify", str(receipt)]) == 0
        changed = tmp_path / "changed.json"
        changed.write_bytes(receipt.read_bytes().replace(b'"new_tokens"', b'"new_tokenz"', 1)[:-1])
        assert await asyncio.to_thread(main, ["verify", str(changed)]) not in (0, 3)
        async with asyncio.timeout(60):  # nodes scout the edges of likely rings some seconds after they begin to serve
            while None in kinds(status := await look(ring)):
                assert status["covered"] and len(status["nodes"]) == 3
        assert set(kinds(status)) <= {"direct", "reverse"} and len(kinds(status)) == 4  # two may dial at once
        assert await ring.nodes[1].stop() == 0


@pytest.mark.soak
async def test_a_drafter_beside_the_model_reads_rows_of_a_ring_of_processes(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "m"
    shutil.copytree(folder, model)
    save_block(model / "drafter", LlamaConfig.from_pretrained(model), "dflash", [1, 3, 5])
    async with ring_of(model, tmp_path, LAYERS) as ring:
        common = ("--ignore-eos", "--models", str(tmp_path / "models"), "--max-tokens", "24")
        found = await ring.generate("Hello there", *common)
        assert found["token_ids"] == expected(model, found["prompt_token_ids"], 24)
        assert "dflash" in found["drafter"]
        assert await asyncio.to_thread(main, ["verify", found["receipt"]]) == 0


async def test_a_run_survives_kill_minus_nine(folder: Path, tmp_path: Path) -> None:
    async with ring_of(folder, tmp_path, [*LAYERS, (2, 4)], rtt_ms=20.0) as ring:
        common = ("--ignore-eos", "--models", str(tmp_path / "models"), "--speculation", "plain")
        asking = asyncio.create_task(ring.generate("Once upon", "--max-tokens", "200", *common))
        async with asyncio.timeout(60):
            twins = [node for node in ring.nodes if node.layers == (2, 4)]
            victim = await busy(ring, twins)
        victim.send_signal(signal.SIGKILL)
        result = await asking
        assert result["recoveries"] == 1
        assert result["token_ids"] == expected(folder, result["prompt_token_ids"], 200)
        assert await asyncio.to_thread(main, ["verify", result["receipt"]]) == 0
        account = verify(Path(result["receipt"]).read_bytes()).run
        assert account is not None
        served = {stage.node for epoch in account.epochs for stage in epoch.plan}
        assert {twin.id for twin in twins} <= served


async def look(ring: LocalRing) -> dict[str, Any]:
    """What `swarm status` says."""
    return await ring.run("status", "--swarm", ring.invite, "--state", str(ring.swarm.state / "looker"))


def kinds(status: dict[str, Any]) -> list[str | None]:
    """Of the edges of the ring that a request would take, in order."""
    return [*(stage["edge"] for stage in status["ring"]["stages"]), status["ring"]["return_edge"]]


async def busy(ring: LocalRing, among: list[LocalNode]) -> LocalNode:
    """Which of these nodes has a session open now."""
    while True:
        status = await look(ring)
        busy = {node["node"] for node in status["nodes"] if node["sessions"]}
        for node in among:
            if node.id in busy:
                return node


async def test_missing_layers_are_named(folder: Path, tmp_path: Path) -> None:
    async with ring_of(folder, tmp_path, [(0, 2), (4, 6)]) as ring:
        with pytest.raises(RunError, match=r"layers 2-3 are held by nobody; 2 nodes present"):
            await ring.generate("Hi", "--max-tokens", "2", "--patience", "0", "--models", str(tmp_path / "models"))


async def test_a_node_without_the_model_takes_its_layers_from_members(folder: Path, tmp_path: Path) -> None:
    async with ring_of(folder, tmp_path, [(0, 6)]) as ring:
        elsewhere = ("--models", str(tmp_path / "empty"), "--weights", "peers")
        newcomer = await ring.add((2, 4), *elsewhere)
        assert newcomer.layers == (2, 4)
        stored = [path for path in (tmp_path / "empty" / "peers").rglob("*") if path.is_file()]
        assert stored
        await ring.nodes[0].stop()
