"""A row's bits are a function of the weights and of its own path: the same text in any company, parts and slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm.model import pairs
from swarm.model.block import load_block
from swarm.model.exact import InOrder, first_difference, is_row_invariant, stands_against, why_not
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.quant.native import library
from swarm.model.rows import no_commits
from tests.models.configs import tiny_config
from tests.swarm.model.exact_rows import (
    KINDS,
    LAYERS,
    LAYOUT,
    block_of,
    config_of,
    random_text,
    reference,
)
from tests.swarm.model.histories import live
from tests.swarm.model.tiny import CPU, MemoryCheckpoint, certain, random_model

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")

TEXT = 150
"""More than two of attention's chunks of 64."""
ALL = [(family, kind) for family in ("llama", "qwen2", "gemma3", "gpt2", "mixtral", "gpt-oss") for kind in KINDS]
ALL = [case for case in ALL if case not in (("gpt2", "Q8_0"), ("gpt2", "Q4_0"))]
ALL += [("llama-large", kind) for kind in ("Q4_K", "Q6_K")]
_made: dict[tuple[str, str], tuple[Any, list[int], dict[int, torch.Tensor]]] = {}


def made(family: str, kind: str) -> tuple[Any, list[int], dict[int, torch.Tensor]]:
    """A block, a text, and its rows after every layer."""
    if (family, kind) not in _made:
        block, text = block_of(family, kind), random_text(5, TEXT)
        _made[family, kind] = block, text, reference(block, text)
    return _made[family, kind]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("family", "kind"), ALL)
def test_it_says_that_its_rows_are_invariant(family: str, kind: str) -> None:
    assert why_not(made(family, kind)[0]) is None


@pytest.mark.parametrize(("family", "kind"), ALL)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_history_gives_the_same_bits(family: str, kind: str, data: st.DataObject) -> None:
    live(data, *made(family, kind), 12)


@pytest.mark.soak
@pytest.mark.parametrize(("family", "kind"), ALL)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_longer_history_gives_the_same_bits(family: str, kind: str, data: st.DataObject) -> None:
    live(data, *made(family, kind), 40)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_too_do_not_depend_on_how_many_are_wanted(kind: str) -> None:
    block, text, want = made("llama", kind)
    kv = KVPool(block, 1 << 40).open(LAYOUT, 0, LAYERS)
    for at in range(0, 40, 4):
        rows = certain(text[at : at + 4], at, LAYOUT)
        rows.want[:] = [False, True, False, at % 8 == 0]
        (found,) = block.forward([Job(kv, no_commits(), rows, None)])
        assert torch.equal(found, want[LAYERS][at : at + 4][torch.from_numpy(rows.want)])


def test_torchs_own_order_is_not_claimed() -> None:
    block = load_block(MemoryCheckpoint(random_model(config_of("llama"))), 0, LAYERS, CPU, torch.float32, exact=False)
    assert not is_row_invariant(block) and "kernels" in str(why_not(block))
    assert "scaled_dot_product_attention" in str(stands_against(block, library(), [(0, LAYERS)]))


def test_a_layer_that_looks_at_other_rows_is_seen() -> None:
    block = load_block(MemoryCheckpoint(random_model(config_of("gemma3"))), 0, LAYERS, CPU, torch.float32)
    assert first_difference(block) is None
    spoilt = block.loaded.model.model.layers[1].mlp.register_forward_hook(  # type: ignore[union-attr]
        lambda module, given, out: out + 1e-6 * out.shape[1]
    )
    assert first_difference(block) == 0 and "row 0" in str(stands_against(block, library(), [(0, LAYERS)]))
    spoilt.remove()
    assert first_difference(block) is None


def test_what_multiplies_elsewhere_is_named() -> None:
    block = load_block(MemoryCheckpoint(random_model(config_of("gemma3"))), 0, LAYERS, CPU, torch.float32)
    block.loaded.model.model.layers[1].mlp.register_forward_hook(  # type: ignore[union-attr]
        lambda module, given, out: out + torch.einsum("bth,bth->bt", out, out)[..., None]
    )
    assert "einsum" in str(stands_against(block, library(), [(0, LAYERS)]))


def test_attention_over_slots_as_they_lie_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without their kernels latents are attended to by torch's products, which nobody takes in order."""
    monkeypatch.setattr("swarm.model.inorder.LatentHeads.of", lambda *about: None)
    config = tiny_config("deepseek_v3")
    block = load_block(MemoryCheckpoint(random_model(config)), 0, config.num_hidden_layers, CPU, torch.float32)
    assert "matmul" in str(why_not(block))


def test_rows_that_a_cut_rounds_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mamba's layers hand on float32 sums, nodes bfloat16: what is not rounded within a node differs from a cut."""
    checkpoint = MemoryCheckpoint(random_model(tiny_config("mamba")))
    layers = checkpoint.manifest.n_layers
    assert why_not(load_block(checkpoint, 0, layers, CPU, torch.bfloat16)) is None
    monkeypatch.setattr("swarm.model.load._round_rows", lambda layers, dtype: None)
    assert "a cut" in str(why_not(load_block(checkpoint, 0, layers, CPU, torch.bfloat16)))


@pytest.mark.parametrize("width", [1, 15, 48, 64, 130])
@pytest.mark.parametrize("function", [torch.nn.functional.silu, torch.exp, torch.tanh, torch.cos])
def test_a_function_of_single_numbers_does_not_see_where_a_tensor_ends(function: Any, width: int) -> None:
    rows = torch.randn(21, width, generator=torch.Generator().manual_seed(1))
    lib = library()
    assert lib is not None
    with InOrder(lib):
        once = function(rows)
        assert torch.equal(once, torch.cat([function(rows[i : i + 1]) for i in range(len(rows))]))
        assert torch.equal(once, function(rows.T).T) and torch.allclose(once, function(rows.double()).float())


def test_a_model_that_writes_nothing_out_is_not_watched() -> None:
    """Watching costs some microseconds for every call of torch."""
    assert block_of("llama-large", "float32")._order is None and block_of("llama-large", "bfloat16")._order is None


def test_what_a_row_does_not_see_leaves_no_trace_in_it() -> None:
    """Products and softmaxes over slots in the order of positions: others between and behind them change no bit."""
    lib, source = library(), torch.Generator().manual_seed(2)
    assert lib is not None
    scores, values = torch.randn(2, 3, 9, generator=source), torch.randn(2, 9, 5, generator=source)
    want = pairs.product(lib, pairs.softmax(lib, scores), values)
    places = torch.tensor([0, 2, 3, 5, 6, 7, 10, 11, 13])
    wide, far = torch.full((2, 3, 17), -torch.inf), torch.randn(2, 17, 5, generator=source)
    wide[..., places], far[:, places] = scores, values
    found = pairs.product(lib, pairs.softmax(lib, wide), far)
    assert want is not None and found is not None and torch.equal(found, want)
    assert torch.allclose(want, torch.softmax(scores, -1) @ values, atol=1e-5)


def test_a_view_says_what_its_block_says() -> None:
    block = made("llama", "float32")[0]
    assert is_row_invariant(block.view(1, 2)) and not is_row_invariant(object())
