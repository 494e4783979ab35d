"""Index attention where positions score the same: the earliest are taken, here and in a reference that is told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from swarm.model.block import load_block
from swarm.model.earliest import TakeEarliest, earliest
from swarm.model.kvcache import KVPool
from swarm.model.rows import Layout, no_commits
from tests.models.configs import LAYERS, SPECIAL, VOCAB, tiny_config
from tests.models.sweep import Reference, _apart, _random_model
from tests.swarm.model.tiny import CPU, Chain, MemoryCheckpoint, certain, drafted

ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "one-head": ("deepseek_v32", {"index_n_heads": 1}),
    "wide-mlp": ("deepseek_v32", {"intermediate_size": 96}),
    "latent-of-keys": ("deepseek_v32", {"kv_lora_rank": 16}),
    "latent-of-queries": ("deepseek_v32", {"q_lora_rank": 16}),
    "wide-keys": ("deepseek_v32", {"qk_nope_head_dim": 16}),
    "glm": ("glm_moe_dsa", {"index_n_heads": 1}),
    "hy": ("hy_v4", {"index_n_heads": 1}),
    "pooled": ("deepseek_v4", {"index_n_heads": 1}),
}
"""Cases in which whole texts have ties at the edge of what an index takes."""
TAKEN = 4
"""What an index of these takes."""
SHORT = ("one-head", "pooled")


def odd_model(case: str) -> Any:
    kind, changes = ODD[case]
    config = tiny_config(kind)
    for key, value in changes.items():
        assert key in SPECIAL.get(kind, {}) or hasattr(config, key)
        setattr(config, key, value)
    return _random_model(config)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, float("-inf")]), min_size=1, max_size=40), st.integers(1, 45))
def test_of_equal_scores_the_earliest_are_taken(scores: list[float], count: int) -> None:
    line = torch.tensor(scores)
    value, place = earliest(line[None], min(count, len(scores)))
    taken = {int(i) for i in place[0] if scores[int(i)] > float("-inf")}
    order = sorted((i for i, s in enumerate(scores) if s > float("-inf")), key=lambda i: (-scores[i], i))
    assert taken == set(order[:count])
    assert torch.equal(value[0], line[place[0]])


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in SHORT else pytest.mark.soak) for c in ODD])
def test_ties_go_to_the_earliest_in_every_cut(case: str, tmp_path: Path) -> None:
    model = odd_model(case)
    model.save_pretrained(tmp_path / "model")
    expected = Reference(model, torch.float32)
    assert max(_apart(tmp_path, cuts, expected, torch.float32) for cuts in ((0, LAYERS), (0, 2, LAYERS))) < 2e-4


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_taken_does_not_depend_on_where_rows_lie(exact: bool) -> None:
    """A draft in a slot before the text's, other drafts beside it, or the same token of the text."""
    block = load_block(MemoryCheckpoint(odd_model("one-head")), 0, LAYERS, CPU, torch.float32, exact=exact)
    layout, tokens = Layout(scratch=16, context=64), [(7 * i + 3) % VOCAB for i in range(12)]
    found = []
    for tree, slots in ((None, []), ((-1, 0, 1, 2), [3, 2, 1, 0]), ((-1, 0, 1, 2, 0, 4), [9, 3, 8, 2, 1, 0])):
        chain = Chain([block], [KVPool(block, 1 << 30)])
        session = chain.open(layout)
        chain.run([(session, no_commits(), certain(tokens[:8], 0, layout))])
        own = tokens[8:]
        if tree is None:
            rows = certain(own, 8, layout)
        else:
            rows = drafted(own + [5, 6][: len(tree) - 4], tree, slots, 8, layout)
        found.append(chain.run([(session, no_commits(), rows)])[0][3])
    assert all((other - found[0]).abs().max() < 1e-4 * found[0].abs().max() for other in found[1:])


def test_only_ties_are_taken_otherwise_than_in_transformers() -> None:
    """And transformers takes others itself, with a cache and without: `topk` leaves it open."""
    model = odd_model("one-head")
    tokens = torch.tensor([[(7 * i + 3) % VOCAB for i in range(16)]])
    apart = []
    for rule in (TakeEarliest(), None):
        with torch.inference_mode():
            whole, cached = _told(model, tokens, rule)
        apart.append(float((whole - cached).abs().max() / whole.abs().max()))
    assert apart[0] < 1e-4 < 0.01 < apart[1]


class Counting(TorchFunctionMode):
    """Counts rows that see more than an index takes (`choices`), and ties at the edge (`zero`: at 0; `other`): looks at
    the scores that `earliest` is given, which asks for one more."""

    def __init__(self) -> None:
        super().__init__()
        self.choices = self.zero = self.other = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.topk and args[0].dim() == 3 and args[1] == TAKEN + 1:  # [batch, rows, positions]
            line = args[0][0].sort(-1, descending=True).values
            edge = line[:, TAKEN - 1 : TAKEN + 1]
            self.choices += int((edge[:, 1] > float("-inf")).sum())
            tied = (edge[:, 0] == edge[:, 1]) & (edge[:, 1] > float("-inf"))
            self.zero += int((tied & (edge[:, 1] == 0)).sum())
            self.other += int((tied & (edge[:, 1] != 0)).sum())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("heads", "least", "most"), [(1, 0.4, 0.45), (8, 0.0, 0.0)])
def test_how_many_choices_tie_and_where(heads: int, least: float, most: float) -> None:
    """Scores are cut off at zero: ties are there and nowhere else."""
    config = tiny_config("deepseek_v32")
    config.index_n_heads = heads
    with Counting() as count:
        Reference(_random_model(config), torch.float32)
    assert count.choices == 672 and count.other == 0 and least <= count.zero / count.choices <= most


def _told(model: Any, tokens: torch.Tensor, rule: TakeEarliest | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a text at once, and token by token."""
    if rule is not None:
        with rule:
            return _told(model, tokens, None)
    cache, rows = None, []
    for i in range(tokens.shape[1]):
        out = model(tokens[:, i : i + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        rows.append(out.logits[0, -1])
    return model(tokens, use_cache=False).logits[0], torch.stack(rows)
