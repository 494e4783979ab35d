"""A row's bits are a function of the weights and of its own path, in every family: or the block says what stands
against it. A selection in the normal run; all of the sweep's cases, and stored formats, with the marker `sweep`."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm.base.errors import SwarmError
from swarm.model.exact import why_not
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.quant.native import library
from swarm.model.rows import Layout, no_commits
from tests.models.configs import VARIANTS, all_types, tiny_config
from tests.models.sweep import MOST_WEIGHTS, _quiet, _random_model
from tests.swarm.model.exact_rows import loaded, random_text, reference
from tests.swarm.model.histories import live
from tests.swarm.model.tiny import certain, whole_model

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")

TEXT = 150
SHORT = (
    "qwen3_next", "olmo_hybrid", "mamba", "mamba2", "nemotron_h", "lfm2", "minimax", "gpt_oss", "dbrx", "llama4_text",
    "gemma3_text", "qwen2_moe",
)  # fmt: skip
"""The gated delta rule with fewer and as many key heads, both kinds of state spaces, a short convolution, lightning
attention, experts of each form, and widths that are no whole vectors."""
OTHERS = (
    ("deepseek_v3", "bfloat16"), ("gemma3n_text", "float32"), ("diffllama", "bfloat16"), ("glm_moe_dsa", "float32"),
    ("bloom", "bfloat16"),
)  # fmt: skip
"""Other kinds of attention: latents, another layer's keys, two a layer, what an index picks, and a class's own code."""
ONCE = (
    ("deepseek_v4", "float32"), ("deepseek_v4", "Q8_0"), ("minimax_m3-sparse", "float32"), ("falcon", "float32"),
    ("mpt", "float32"), ("longcat_flash", "float32"),
)  # fmt: skip
"""Looked at only: entries beside a window (also with its table as stored), an index of blocks, biases by position, two
latents a layer."""
KINDS = ("float32", "bfloat16", "Q8_0", "Q4_1")


@functools.lru_cache(maxsize=2)
def made(case: str, kind: str) -> Any:
    """A block, a text and its rows after every layer; words where there is nothing to compare."""
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        try:
            config = tiny_config(case)
            with torch.device("meta"):
                size = sum(p.numel() for p in whole_model(config).parameters())
            if size > MOST_WEIGHTS:
                return "no tiny config by rule"
            model = _random_model(config)
        except Exception:
            return "no tiny config by rule"
        try:
            block = loaded(model, kind)
        except SwarmError as exc:
            return f"refused: {exc}"
    if (reason := why_not(block)) is not None:
        return f"not claimed: {reason}"
    text = random_text(5, TEXT)
    return block, text, reference(block, text)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("case", "kind"), [*zip(SHORT, itertools.cycle(("bfloat16", "float32")), strict=False), *OTHERS]
)
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_history_gives_the_same_bits(case: str, kind: str, data: st.DataObject) -> None:
    found = made(case, kind)
    assert not isinstance(found, str), found
    live(data, *found, 8)


@pytest.mark.soak
@pytest.mark.parametrize(("case", "kind"), ONCE)
def test_other_kinds_of_attention_are_looked_at_too(case: str, kind: str) -> None:
    found = made(case, kind)
    assert not isinstance(found, str), found


@pytest.mark.parametrize("case", ["glm_moe_dsa", "bloom"])
def test_a_session_may_have_no_slots_for_drafts(case: str) -> None:
    block, text, want = made(case, "float32")
    layout = Layout(scratch=0, context=32)
    kv = KVPool(block, 1 << 24).open(layout, 0, block.last)
    parts = [
        block.forward([Job(kv, no_commits(), certain(text[a:b], a, layout), None)])[0] for a, b in ((0, 20), (20, 23))
    ]
    assert torch.equal(torch.cat(parts), want[block.last][:23])


@pytest.mark.sweep
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [*all_types(), *VARIANTS])
def test_every_family_is_equal_to_the_bit_or_says_what_stands_against_it(case: str, kind: str) -> None:
    found = made(case, kind)
    if isinstance(found, str):
        pytest.skip(found)

    @settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def histories(data: st.DataObject) -> None:
        live(data, *found, 12)

    histories()
