"""What a swarm with holes lacks, in words."""

from __future__ import annotations

from swarm.planner.coverage_need import need
from swarm.planner.fleet import ModelShape

MODEL = ModelShape("m", (8_000_000,) * 30, 64, 1000, head_bytes=56_000_000, tail_bytes=40_000_000)


def test_one_hole_needs_one_node_with_memory_for_weights_and_kv() -> None:
    assert need(MODEL, [(20, 29)]) == "need one more node with about 0.1 GB"  # 9 x (8 + 4.1) MB, over 0.8
    assert need(MODEL, [(4, 5)], context=0) == "need one more node with about 10 MB"


def test_the_ends_weigh_more() -> None:
    assert need(MODEL, [(0, 1)], context=0) == "need one more node with about 0.1 GB"
    assert need(MODEL, [(29, 30)], context=0) == "need one more node with about 0.1 GB"


def test_holes_apart_need_several_nodes() -> None:
    assert need(MODEL, [(0, 10), (20, 30)]) == "need 2 more nodes with about 0.4 GB in all"


def test_large_models_in_round_numbers() -> None:
    assert need(ModelShape("big", (10**10,) * 4, 64, 0), [(0, 4)]) == "need one more node with about 50 GB"
