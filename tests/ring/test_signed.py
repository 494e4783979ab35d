"""Receipts of a live ring: replay of the run, and audits that tell lying stages from honest ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from receipts.errors import Refusal
from receipts.verdict import Level, Verdict
from receipts.verify import Options, verify
from swarm.model.checkpoint import Checkpoint, open_model
from swarm.model.sampler import Sampling
from swarm.model.store import ModelStore
from swarm.ring.run import RunRequest

from .signed import LIES, SignedRing, signed_ring

SPANS = [(0, 3), (3, 6), (6, 8)]
PROMPT = tuple(range(7, 40))
GREEDY = Sampling()
SAMPLED = Sampling(temperature=0.8, top_p=0.95, seed=5)


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random Llama of 8 layers, wide enough for errors of rows to be as even as real models' are."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=311, hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, eos_token_id=None, bos_token_id=None,
        initializer_range=0.06,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("wide")
    LlamaForCausalLM(config).save_pretrained(folder)
    return open_model(str(folder), ModelStore(tmp_path_factory.mktemp("models")))


async def audited(ring: SignedRing, path: Path, checkpoint: Checkpoint, count: int = 90) -> Verdict:
    options = Options(
        required=Level.SAMPLED,
        model=checkpoint.manifest,
        auditor=ring.auditor(checkpoint),
        audit_rows=count,
    )
    return await asyncio.to_thread(verify, path.read_bytes(), options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("speculation", ["plain", "stream"])
async def test_honest_stages_pass(wide: Checkpoint, tmp_path: Path, dtype: torch.dtype, speculation: str) -> None:
    async with signed_ring(wide, SPANS, tmp_path, dtype=dtype) as ring:
        result = await ring.generate(RunRequest(PROMPT, max_tokens=24, speculation=speculation))
        verdict = await audited(ring, Path(result.receipt), wide)
        assert (verdict.exit_code, verdict.level) == (0, Level.SAMPLED), verdict.line
        print([c.text for c in verdict.claims if c.subject == "audit"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("lie", LIES)
async def test_a_lying_stage_is_caught(
    wide: Checkpoint, tmp_path: Path, dtype: torch.dtype, stage: int, lie: str
) -> None:
    async with signed_ring(wide, SPANS, tmp_path, dtype=dtype, twists={stage: LIES[lie]}) as ring:
        result = await ring.generate(RunRequest(PROMPT, max_tokens=64, speculation="plain"))
        verdict = await audited(ring, Path(result.receipt), wide)
        print(verdict.line)
        assert verdict.refusal is Refusal.AUDIT, verdict.line
        assert ring.nodes[stage].identity.id.hex()[:8] in verdict.line
