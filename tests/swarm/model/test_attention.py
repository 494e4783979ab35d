"""Random trees in random slots, sent in random frames, against the plain forward of every path."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.base.errors import ModelError
from swarm.model.attend import attend
from swarm.model.attention import JobPlan
from swarm.model.kvcache import KVPool
from swarm.model.masks import visible_slots
from swarm.model.rows import Commits, Layout, Rows, no_commits
from tests.swarm.model.tiny import CPU, VOCAB, Chain, MemoryCheckpoint, certain, chain_of, path_to, random_model

LAYOUT = Layout(scratch=16, context=32)


@cache
def model_and_chain() -> tuple[Any, Chain]:
    """Windows of 5 on every second layer, cut between the two kinds."""
    config = transformers.Qwen2Config(
        hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCAB, max_position_embeddings=64, use_sliding_window=True, sliding_window=5,
        layer_types=["full_attention", "sliding_attention"] * 2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = random_model(config, seed=3)
    return model, chain_of(MemoryCheckpoint(model), (0, 2, 4))


@st.composite
def trees(draw: st.DrawFn) -> tuple[int, list[int], list[int], list[int], list[int]]:
    """(prefix, parents, slots, tokens, frame ends): a tree on `prefix` committed positions and how it is sent."""
    prefix = draw(st.integers(1, 14))
    n = draw(st.integers(1, 10))
    parents = [draw(st.integers(-1, i - 1)) for i in range(n)]
    slots = draw(st.permutations(range(LAYOUT.scratch)))[:n]
    tokens = draw(st.lists(st.integers(0, VOCAB - 1), min_size=n, max_size=n))
    cuts = sorted(draw(st.sets(st.integers(1, n), max_size=3)) | {n})
    return prefix, parents, list(slots), tokens, cuts


def frame(tree: tuple[int, list[int], list[int], list[int], list[int]], begin: int, end: int) -> Rows:
    prefix, parents, slots, tokens, _ = tree
    bits = np.zeros((end - begin, LAYOUT.scratch), np.uint8)
    paths = [path_to(i, parents) for i in range(begin, end)]
    for row, path in enumerate(paths):
        bits[row, [slots[i] for i in path]] = 1
    return Rows(
        slot=np.array(slots[begin:end], np.uint32),
        position=np.array([prefix + len(p) - 1 for p in paths], np.uint32),
        prefix=np.full(end - begin, prefix, np.uint32),
        ancestors=np.packbits(bits, axis=1, bitorder="little"),
        token=np.array(tokens[begin:end], np.int32),
        want=np.ones(end - begin, bool),
    )


@given(tree=trees(), again=trees(), follow=st.integers(0, 9), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_any_tree_in_any_slots_equals_its_paths(
    tree: tuple[int, list[int], list[int], list[int], list[int]],
    again: tuple[int, list[int], list[int], list[int], list[int]],
    follow: int,
    seed: int,
) -> None:
    model, chain = model_and_chain()
    session = chain.open(LAYOUT)
    prompt = np.random.default_rng(seed).integers(0, VOCAB, tree[0]).tolist()
    chain.run([(session, no_commits(), certain(prompt, 0, LAYOUT, want=False))])
    sure, commits = prompt, no_commits()
    for _, parents, slots, tokens, cuts in (tree, again):
        # The second tree grows on the first one's committed path, over slots full of stale keys and values.
        here = (len(sure), parents, slots, tokens, cuts)
        begin = 0
        for end in cuts:
            (got,) = chain.run([(session, commits, frame(here, begin, end))])
            commits = no_commits()
            for row in range(begin, end):
                path = sure + [tokens[i] for i in path_to(row, parents)]
                with torch.inference_mode():
                    expected = model(torch.tensor([path])).logits[0, -1]
                torch.testing.assert_close(got[row - begin], expected, rtol=0, atol=2e-5)
            begin = end
        path = path_to(follow % len(parents), parents)
        where = np.arange(len(sure), len(sure) + len(path))
        commits = Commits(np.array([slots[i] for i in path], np.uint32), where.astype(np.uint32))
        sure = sure + [tokens[i] for i in path]


def plan_of(rows: Rows, layout: Layout) -> JobPlan:
    _, chain = model_and_chain()
    kv = KVPool(chain.blocks[0], 1 << 30).open(layout, 0, 2)
    return JobPlan(kv, rows, 0, CPU, torch.float32)


def test_a_certain_row_reads_no_scratch_and_needs_no_mask() -> None:
    plan = plan_of(certain([1], 9, LAYOUT), LAYOUT)
    assert (plan.low, plan.high) == (LAYOUT.scratch, LAYOUT.scratch + 10)
    assert plan.mask(None, 2) is None
    windowed = plan.mask(5, 2)
    assert windowed is not None
    assert windowed.shape == (2, 10)
    assert (windowed == 0).sum() == 2 * 5


def test_scratch_from_the_top_keeps_the_range_short() -> None:
    tree = (4, [-1, 0], [15, 14], [1, 2], [2])
    plan = plan_of(frame(tree, 0, 2), LAYOUT)
    assert (plan.low, plan.high) == (8, 24)  # 8 scratch and 4 committed slots, rounded up
    assert visible_slots(plan.rows, plan.kv, None, plan.low, plan.high).sum() == (4 + 1) + (4 + 2)


def test_arguments_that_would_change_the_result_are_refused() -> None:
    _, chain = model_and_chain()
    module = next(m for m in chain.blocks[0]._model.modules() if hasattr(m, "layer_idx"))
    query = torch.zeros(1, 4, 2, 8)
    with pytest.raises(ModelError, match="Qwen2Attention cannot be cut into blocks: arguments s_bias"):
        attend(module, query, query, query, None, s_bias=torch.zeros(4))
    with pytest.raises(ModelError, match="unknown kind"):
        attend(torch.nn.Linear(2, 2), query, query, query, None)
