"""Gemma 3n in rings: token ids travel with hidden rows, the last layers read an earlier one's keys and values."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

from receipts.check.verdict import Level
from receipts.check.verify import verify
from receipts.format.errors import Refusal
from swarm.cli.main import main
from swarm.model.files.checkpoint import Checkpoint, open_model
from swarm.model.files.store import ModelStore
from swarm.recheck.calibrate import measure_limits
from swarm.ring.frame import Frame
from swarm.run.api import RunRequest
from swarm.testbed.cluster import LocalSwarm, local_ring
from tests.ring.conftest import VOCAB, reference
from tests.ring.signed import LIES, signed_ring
from tests.ring.test_families import generated
from tests.ring.test_recovery import disturbed
from tests.ring.test_signed import PROMPT, audited, receipt_of, replaying
from tests.swarm.serve.tiny import tiny_tokenizer
from tests.warm import warm

SPANS = [(0, 1), (1, 2), (2, 6)]
PARTED = (0, 3)


def config_of(vocab: int, hidden: int = 32, scale: float = 0.3, **more: Any) -> Gemma3nTextConfig:
    return Gemma3nTextConfig(
        vocab_size=vocab, vocab_size_per_layer_input=vocab, hidden_size=hidden, intermediate_size=2 * hidden,
        hidden_size_per_layer_input=8, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        head_dim=hidden // 4, num_kv_shared_layers=2, layer_types=["sliding_attention", "full_attention"] * 3,
        sliding_window=16, max_position_embeddings=512, laurel_rank=8, altup_num_inputs=3,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0, 0.0, 0.0], initializer_range=scale,
        **{"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0, **more},
    )  # fmt: skip


def save(config: Gemma3nTextConfig, folder: Path) -> Path:
    torch.manual_seed(7)
    model = Gemma3nForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith(("correct_output_scale", "post_laurel_norm.weight")):
            weight.data += 0.5 + 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(config_of(VOCAB), tmp_path_factory.mktemp("gemma3n"))


@pytest.fixture(scope="module")
def tiny_model(tiny_folder: Path) -> Any:
    return Gemma3nForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def broad(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = save(config_of(311, 256, 0.06), tmp_path_factory.mktemp("broad"))
    return open_model(str(folder), ModelStore(tmp_path_factory.mktemp("models")))


@pytest.mark.parametrize(("speculation", "victims"), [("tree", [1]), ("stream", [2]), ("chain", [1, 2])])
async def test_a_lost_stage_does_not_change_the_text(
    make_ring: Callable[..., Any], tiny_model: Any, speculation: Any, victims: list[int]
) -> None:
    prompt = tuple(range(3, 60))
    async with make_ring([*SPANS, *SPANS]) as ring:
        request = RunRequest(prompt, max_tokens=40, speculation=speculation)
        result, news = await disturbed(ring, request, victims, 12)
    assert list(result.token_ids) == reference(tiny_model, prompt, 40)
    assert result.recoveries >= 1 and news


async def test_every_stage_is_shown_the_token_ids(
    make_ring: Callable[..., Any], frames_taken: list[tuple[int, Frame]]
) -> None:
    async with make_ring(SPANS) as ring:
        await disturbed(ring, RunRequest((5, 6, 7), max_tokens=4, speculation="plain"), [], 99)
    for first in (0, 1, 2):
        tokens = [int(t) for layer, frame in frames_taken if layer == first for t in frame.rows.token]
        assert tokens[:3] == [5, 6, 7] and min(tokens) >= 0


async def test_receipts_replay_and_audits_recompute_stages_with_the_ids(broad: Checkpoint, tmp_path: Path) -> None:
    async with signed_ring(broad, SPANS, tmp_path / "honest", dtype=torch.bfloat16) as ring:
        path = await receipt_of(ring, 16, "stream")
        replayed = await asyncio.to_thread(verify, path.read_bytes(), replaying(path, broad))
        assert (replayed.exit_code, replayed.level) == (0, Level.REPLAYED), replayed.line
        verdict = await audited(ring, path, broad)
        assert (verdict.exit_code, verdict.level) == (0, Level.SAMPLED), verdict.line
    async with signed_ring(broad, SPANS, tmp_path / "lies", twists={1: LIES["int8"]}) as ring:
        verdict = await audited(ring, await receipt_of(ring, 24), broad)
        assert verdict.refusal is Refusal.AUDIT and ring.nodes[1].identity.id.hex()[:8] in verdict.line


def test_limits_of_audits_are_measured_between_the_cuts_that_it_allows(broad: Checkpoint) -> None:
    _, measured = measure_limits(broad, [PROMPT], [("float32", "float32")])
    assert measured[0].spans == 3


async def test_a_ring_of_processes_says_what_generate_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_tokenizer()
    folder = save(config_of(len(tokenizer), eos_token_id=tokenizer.eos_token_id), tmp_path / "model")
    tokenizer.save_pretrained(folder)
    models = ("--models", str(tmp_path / "models"))
    words = ("--cpu", "--threads", "1", "--dtype", "float32", *models)
    async with local_ring(
        LocalSwarm(tmp_path / "ring", model=str(folder), arguments=words, command=warm()), SPANS
    ) as ring:
        answer = await ring.generate(
            "Hello there", "--max-tokens", "16", "--ignore-eos", "--draft", "suffix", *models
        )  # fmt: skip
    assert len(answer["ring"]) == 3
    assert answer["token_ids"] == generated(folder, answer["prompt_token_ids"], 16)
    replay = ["verify", answer["receipt"], "--replay", "--model", str(folder), *models]
    assert await asyncio.to_thread(main, replay) == 0


def test_a_block_that_parts_layers_is_refused_by_name(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--state", str(tmp_path / "state"), "--models", str(tmp_path / "models")]
    assert main(["join", "--model", str(tiny_folder), "--layers", "0:3", "--cpu", *folders]) != 0
    assert "layers 2-5 stay together" in capsys.readouterr().err
