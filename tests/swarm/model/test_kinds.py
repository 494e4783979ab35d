"""Which layers of a block are looked at while it is loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, Qwen2Config

from swarm.model.block import Block, load_block
from swarm.model.files.store import ModelStore
from swarm.model.kinds import MOST, pairs, singles
from tests.swarm.model.tiny import CPU, random_model


def one_by_one(n: int) -> list[tuple[int, int]]:
    return [(i, i + 1) for i in range(n)]


def test_of_equal_layers_one_pair_stands_for_all_and_the_ends_are_always_there() -> None:
    same = ["a"] * 30
    assert pairs(one_by_one(30), same, head=False, tail=False) == [(0, 2)]
    assert pairs(one_by_one(30), same, head=True, tail=True) == [(0, 2), (28, 30)]
    assert singles(one_by_one(30), same, head=False, tail=True) == [(29, 30)]
    assert pairs([(4, 5)], ["a"], head=False, tail=False) == singles([(4, 5)], ["a"], False, False) == [(4, 5)]


def test_a_kind_in_the_middle_is_looked_at_with_both_its_neighbours() -> None:
    kinds = ["a"] * 10 + ["b"] + ["a"] * 10
    assert pairs(one_by_one(21), kinds, head=True, tail=False) == [(0, 2), (9, 12)]
    assert singles(one_by_one(21), kinds, head=True, tail=True) == [(0, 1), (10, 11), (20, 21)]


def test_layers_that_all_differ_are_looked_at_up_to_a_number() -> None:
    for chosen in (
        pairs(one_by_one(40), list(range(40)), head=True, tail=True),
        singles(one_by_one(40), list(range(40)), head=True, tail=True),
    ):
        assert 4 <= sum(b - a for a, b in chosen) <= MOST and chosen[0][0] == 0 and chosen[-1][1] == 40


def test_parts_that_cannot_be_cut_stay_whole() -> None:
    parts = [(5, 6), (6, 9), (9, 10)]
    assert pairs(parts, ["a"] * 5, head=False, tail=False) == [(5, 10)]
    assert singles(parts, ["a"] * 5, head=False, tail=False) == [(5, 6), (6, 9)]


def block_of(config: object, folder: Path) -> Block:
    random_model(config).save_pretrained(folder / "model")
    n = int(config.num_hidden_layers)  # type: ignore[attr-defined]
    return load_block(ModelStore(folder / "store").open(str(folder / "model")), 0, n, CPU, torch.float32)


def test_layers_of_real_classes_differ_by_what_they_compute(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 97}
    assert len(set(block_of(LlamaConfig(**sizes), tmp_path / "llama").kinds())) == 1
    windows = Qwen2Config(**sizes, use_sliding_window=True, sliding_window=7, max_window_layers=3)
    kinds = block_of(windows, tmp_path / "qwen").kinds()
    assert kinds[0] == kinds[2] != kinds[3] == kinds[4]
