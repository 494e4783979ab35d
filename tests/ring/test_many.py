"""Eight nodes of unequal capacity choose their layers: joins at once, a leave, a kill -9, answers throughout."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swarm.local import LocalNode, LocalRing, LocalSwarm, local_ring
from tests.swarm.serve.tiny import tiny_tokenizer

N_LAYERS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model of 12 layers."""
    path = tmp_path_factory.mktemp("twelve")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(12)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=N_LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.4,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


async def status(ring: LocalRing) -> dict[str, Any]:
    return await ring.run("status", "--swarm", ring.invite, "--state", str(ring.swarm.state / "looker"))


async def answer(ring: LocalRing, folder: Path) -> None:
    """Any route gives what the whole model gives."""
    words = ("--ignore-eos", "--speculation", "plain", "--models", str(ring.swarm.state / "models"))
    out = await ring.generate("Hello", "--max-tokens", "6", *words)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = out["prompt_token_ids"]
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([ids]), max_new_tokens=6, min_new_tokens=6, do_sample=False, eos_token_id=None
        )
    assert out["token_ids"] == [int(t) for t in whole[0, len(ids) :]]


def spare(nodes: list[LocalNode]) -> LocalNode:
    """A node whose layers others hold too; not one of the first, whom the invite names."""
    for node in reversed(nodes):
        rest = {layer for other in nodes if other is not node for layer in range(*other.layers)}
        if len(rest) == N_LAYERS:
            return node
    raise AssertionError("eight nodes of 3 to 6 layers leave no layer to a single one")


@pytest.mark.soak
async def test_eight_processes_of_unequal_capacity_stay_covered(folder: Path, tmp_path: Path) -> None:
    words = ("--cpu", "--threads", "1", "--dtype", "float32", "--models", str(tmp_path / "models"))
    async with local_ring(LocalSwarm(tmp_path, model=str(folder), arguments=words), [(0, 5)]) as ring:
        for capacity in (4, 3, 5, 4, 6):
            await ring.add(None, "--capacity", str(capacity))
        await asyncio.gather(*(ring.add(None, "--capacity", "5") for _ in range(2)))
        seen = await status(ring)
        assert seen["covered"] and len(seen["nodes"]) == 8
        blocks = {node["node"]: node["layers"] for node in seen["nodes"]}
        assert blocks == {node.id: list(node.layers) for node in ring.nodes}
        await answer(ring, folder)

        alive = list(ring.nodes)
        leaver = spare(alive)
        assert await leaver.stop() == 0
        alive.remove(leaver)
        await answer(ring, folder)
        victim = spare(alive)
        victim.send_signal(signal.SIGKILL)
        alive.remove(victim)
        await answer(ring, folder)
        for _ in range(20):
            seen = await status(ring)
            held = {node["node"]: node["layers"] for node in seen["nodes"] if node["standing"] == "up"}
            if set(held) == {node.id for node in alive}:
                break
        assert seen["covered"]
        assert held == {node.id: blocks[node.id] for node in alive}  # nobody reloaded
