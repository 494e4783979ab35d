"""Models that do arithmetic around their layers or keep states, in rings of real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV4Config,
    GraniteConfig,
    Lfm2Config,
    OlmoConfig,
    Phi3Config,
    Zamba2Config,
)

from swarm.cli.main import main
from swarm.testbed.cluster import LocalSwarm, local_ring
from tests.swarm.serve.tiny import tiny_tokenizer
from tests.warm import warm

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.4, "bos_token_id": None,
}  # fmt: skip
FAMILIES = {
    "granite": lambda **v: GraniteConfig(**v, embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=2.0),
    "olmo": lambda **v: OlmoConfig(**v),
    "lfm2": lambda **v: Lfm2Config(**v, pad_token_id=0, layer_types=["conv", "full_attention", "conv"] * 2),
    "zamba2": lambda **v: Zamba2Config(
        **{**v, "num_key_value_heads": 4}, pad_token_id=0, mamba_d_state=8, mamba_ngroups=2, n_mamba_heads=8,
        layers_block_type=["linear_attention", "hybrid", "linear_attention"] * 2, num_mem_blocks=1, adapter_rank=4,
    ),
    "deepseek_v4": lambda **v: DeepseekV4Config(
        **{**v, "num_key_value_heads": 1}, head_dim=8, partial_rotary_factor=0.5, q_lora_rank=8, o_groups=2,
        o_lora_rank=8, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, sliding_window=5,
        index_n_heads=8, index_head_dim=8, index_topk=3, mlp_layer_types=["hash_moe"] * 4 + ["moe"] * 2,
        layer_types=["sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"] * 2,
        compress_rates={"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    ),
    "phi3": lambda **v: Phi3Config(
        **v, pad_token_id=0, original_max_position_embeddings=SWITCH,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [2.0, 3.0, 5.0, 8.0], "original_max_position_embeddings": SWITCH,
        },
    ),
}  # fmt: skip
SWITCH = 64
"""Positions of a text before Phi-3 rotates all of it anew."""
RINGS: tuple[list[tuple[int, int]], ...] = ([(0, 6)], [(0, 3), (3, 6)], [(0, 2), (2, 4), (4, 6)])


def saved(family: str, path: Path) -> Path:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(7)
    config = FAMILIES[family](vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **SIZES)
    model = AutoModelForCausalLM.from_config(config)
    for name, table in model.named_buffers():
        if name.endswith(".tid2eid"):  # the experts of each token
            table.copy_(torch.stack([torch.randperm(4)[:2] for _ in table]))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def generated(folder: Path, ids: list[int], tokens: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        # Zamba 2's class holds time steps up to a least one in passes of several rows only: whole passes are the rule.
        cached = not isinstance(model.config, Zamba2Config)
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, eos_token_id=None, use_cache=cached
        )
    return [int(t) for t in out[0, len(ids) :]]


@pytest.mark.parametrize(
    ("family", "rings"),
    [
        ("granite", RINGS[2:]),
        ("lfm2", RINGS[1:2]),
        ("deepseek_v4", RINGS[1:2]),
        pytest.param("zamba2", RINGS[1:], marks=pytest.mark.soak),
        pytest.param("granite", RINGS, marks=pytest.mark.soak),
        pytest.param("olmo", RINGS, marks=pytest.mark.soak),
    ],
    ids=["granite-3", "lfm2-2", "deepseek_v4-2", "zamba2-all", "granite-all", "olmo-all"],
)
async def test_a_cut_family_says_what_generate_says_and_replay_accepts_it(
    family: str, rings: tuple[list[tuple[int, int]], ...], tmp_path: Path
) -> None:
    folder = saved(family, tmp_path / "model")
    words = ("--cpu", "--threads", "1", "--dtype", "float32", "--models", str(tmp_path / "models"))
    for layers in rings:
        nodes = len(layers)
        state = tmp_path / str(nodes)
        async with local_ring(LocalSwarm(state, model=str(folder), arguments=words, command=warm()), layers) as ring:
            answer = await ring.generate(
                "Hello there", "--max-tokens", "16", "--ignore-eos", "--draft", "suffix",
                "--models", str(tmp_path / "models"),
            )  # fmt: skip
        assert len(answer["ring"]) == nodes
        assert answer["token_ids"] == generated(folder, answer["prompt_token_ids"], 16), f"{nodes} nodes"
        replay = ["verify", answer["receipt"], "--replay", "--model", str(folder), "--models", str(tmp_path / "models")]
        assert await asyncio.to_thread(main, replay) == 0, f"{nodes} nodes"


async def test_a_longrope_text_is_what_generate_says_up_to_where_its_frequencies_change(tmp_path: Path) -> None:
    folder = saved("phi3", tmp_path / "model")
    words = ("--cpu", "--threads", "1", "--dtype", "float32", "--models", str(tmp_path / "models"))
    more = ("--ignore-eos", "--draft", "suffix", "--models", str(tmp_path / "models"))
    async with local_ring(
        LocalSwarm(tmp_path / "ring", model=str(folder), arguments=words, command=warm()), RINGS[2]
    ) as ring:
        answer = await ring.generate("Hello there", "--max-tokens", "200", *more)
    prompt, told = answer["prompt_token_ids"], answer["token_ids"]
    assert len(prompt) + len(told) == SWITCH + 1  # the last token is said and never computed upon
    assert told == generated(folder, prompt, 200)[: len(told)]
