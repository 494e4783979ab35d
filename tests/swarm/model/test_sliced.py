"""Matrices cut over devices by their outputs: the bits of the whole matrix, in one process and in two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.base.errors import ModelError
from swarm.model.block import Block, load_block
from swarm.model.files.store import ModelStore
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.quant.dense import dense_matrix
from swarm.model.quant.experts import PackedExperts, Stack, route
from swarm.model.quant.matrix import PackedMatrix, StoredMatrix, hold
from swarm.model.quant.native import library
from swarm.model.quant.sliced import SlicedMatrix, SlicedStack, borders, slice_matrix, slice_stack
from swarm.model.rows import Layout, no_commits
from tests.swarm.model import gloo_slices
from tests.swarm.model.encoded_files import packed
from tests.swarm.model.expert_files import mixture, save_one_by_one
from tests.swarm.model.test_encoded import ct
from tests.swarm.model.test_quant import blocks, form_of
from tests.swarm.model.tiny import CPU, MemoryCheckpoint, certain, drafted, random_model, tiny_config

PLACES = [(CPU, 0.5), (torch.device("cpu", 0), 0.2), (torch.device("cpu", 1), 0.3)]
LAYOUT = Layout(scratch=16, context=64)
BYTES = ct("pack-quantized", type="int", num_bits=8, strategy="channel", symmetric=True)

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")


def matrix(kind: str, outs: int, seed: int) -> PackedMatrix:
    lib = library()
    assert lib is not None
    if kind in ("F32", "BF16"):
        numbers = torch.from_numpy(np.random.default_rng(seed).standard_normal((outs, 64))).to(
            torch.float32 if kind == "F32" else torch.bfloat16
        )
        found = dense_matrix(numbers, lib)
    else:
        form = form_of(kind)
        held = hold(blocks(form, outs, 256, seed), form, (outs, 256), None, "m", lib)
        found = held if isinstance(held, PackedMatrix) else None
    assert found is not None
    return found


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["Q4_K", "Q6_K", "Q8_0", "Q4_1", "F32", "BF16"]),
    outs=st.integers(48, 200),
    rows=st.integers(1, 20),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=4).filter(lambda found: sum(found) > 0.01),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_slices_give_the_bits_of_the_whole(
    kind: str, outs: int, rows: int, shares: list[float], bias: bool, seed: int
) -> None:
    whole = matrix(kind, outs, seed)
    cut = slice_matrix(whole, [(torch.device("cpu", i), share) for i, share in enumerate(shares)], "m")
    if cut is None:
        assert outs < 16 * len(shares)
        return
    torch.manual_seed(seed)
    narrow = kind == "BF16" or (kind != "F32" and seed % 2)  # plain numbers are multiplied by rows of their own type
    x = torch.randn(rows, whole.shape[1], dtype=torch.bfloat16 if narrow else torch.float32)
    added = torch.randn(outs) if bias else None
    assert torch.equal(cut.product(x, added), whole.product(x, added))
    wanted = torch.randint(0, outs, (7,))
    assert torch.equal(cut.rows(wanted), whole.rows(wanted)) and cut.shape == whole.shape
    assert cut.nbytes == whole.nbytes and cut.kernel == whole.kernel
    with pytest.raises(IndexError, match="rows of a matrix"):
        cut.rows(torch.tensor([outs]))


@given(st.integers(0, 500), st.lists(st.floats(0, 1), min_size=1, max_size=5).filter(lambda found: sum(found) > 0.01))
def test_borders_cover_every_output_once(count: int, shares: list[float]) -> None:
    edges = borders(count, shares, 16)
    assert edges[0] == 0 and edges[-1] == count and edges == sorted(edges)
    assert all(edge % 16 == 0 or edge == count for edge in edges)
    for (a, b), share in zip(zip(edges, edges[1:], strict=False), shares, strict=True):
        assert abs(b - a - count * share / sum(shares)) <= 16 + 1e-6


def steps(block: Block, first: int = 0) -> list[torch.Tensor]:
    """A prompt, and a tree behind it."""
    kv = KVPool(block, 1 << 24).open(LAYOUT, block.first, block.last)
    text = certain([5, 17, 9, 3, 44, 8], 0, LAYOUT)
    tree = drafted([7, 8, 9, 10], [-1, 0, 0, 2], [0, 1, 2, 3], 6, LAYOUT)
    return [block.forward([Job(kv, no_commits(), rows, None)])[0] for rows in (text, tree)]


@pytest.mark.parametrize("family", ["llama-tied", "qwen3", "gemma3", "mixtral", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_in_slices_computes_what_a_whole_one_does(family: str, dtype: torch.dtype) -> None:
    checkpoint = MemoryCheckpoint(random_model(tiny_config(family)))
    whole = load_block(checkpoint, 0, 6, CPU, dtype)
    cut = load_block(checkpoint, 0, 6, CPU, dtype, places=PLACES)
    assert any(isinstance(getattr(m, "matrix", None), SlicedMatrix) for m in cut.loaded.model.modules())
    assert all(torch.equal(a, b) for a, b in zip(steps(cut), steps(whole), strict=True))
    for a, b in zip(steps(cut.view(0, 2)), steps(whole.view(0, 2)), strict=True):
        assert torch.equal(a, b)


def test_without_kernels_slices_are_as_close_as_torch_is() -> None:
    checkpoint = MemoryCheckpoint(random_model(tiny_config("qwen3")))
    whole = load_block(checkpoint, 0, 6, CPU, torch.float32, blocked=False)
    cut = load_block(checkpoint, 0, 6, CPU, torch.float32, blocked=False, places=PLACES)
    for a, b in zip(steps(cut), steps(whole), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_packed_experts_are_cut_by_their_number(tmp_path: Path) -> None:
    folder = save_one_by_one(tmp_path / "m", mixture("qwen3_moe"), packed(8, 0), BYTES)
    checkpoint = ModelStore(tmp_path / "store").open(str(folder), None)
    last = checkpoint.manifest.n_layers
    whole = load_block(checkpoint, 0, last, CPU, torch.bfloat16, weights="auto")
    cut = load_block(checkpoint, 0, last, CPU, torch.bfloat16, weights="auto", places=PLACES)
    experts = [m for m in cut.loaded.model.modules() if isinstance(m, PackedExperts)]
    assert experts and all(isinstance(stack, SlicedStack) for m in experts for stack in m.stacks.values())
    assert all(torch.equal(a, b) for a, b in zip(steps(cut), steps(whole), strict=True))


@settings(deadline=None, max_examples=40)
@given(
    chosen=st.lists(st.lists(st.integers(0, 7), min_size=2, max_size=2, unique=True), max_size=9),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=4).filter(lambda found: sum(found) > 0.01),
    paired=st.booleans(),
    bias=st.booleans(),
)
def test_pairs_go_to_the_device_of_their_expert(
    chosen: list[list[int]], shares: list[float], paired: bool, bias: bool
) -> None:
    form = form_of("Q8_0")
    whole = Stack((tuple(hold(blocks(form, 32, 64, e), form, (32, 64), None, "m", library()) for e in range(8)),))
    cut = slice_stack(whole, [(torch.device("cpu", i), share) for i, share in enumerate(shares)], "experts")
    routed = route(torch.tensor(chosen, dtype=torch.int64).reshape(len(chosen), 2), 8)
    torch.manual_seed(len(chosen))
    x = torch.randn(routed.pairs if paired else len(chosen), 64)
    added = torch.randn(8, 32) if bias else None
    assert torch.equal(cut.product(x, routed, added, paired), whole.product(x, routed, added, paired))
    assert (cut.experts, cut.in_features, cut.nbytes) == (8, 64, whole.nbytes)


def test_what_is_in_no_panels_is_refused_by_name() -> None:
    form = form_of("IQ2_XXS")
    held = hold(blocks(form, 64, 256), form, (64, 256), None, "m", library())
    assert isinstance(held, StoredMatrix)
    with pytest.raises(ModelError, match=r"up_proj is held as IQ2_XXS, which is not cut over devices"):
        slice_matrix(held, PLACES, "up_proj")


@pytest.mark.soak
def test_two_processes_hold_a_layer_together(tmp_path: Path) -> None:
    """Half of every matrix lies in another process, reached by torch.distributed (gloo)."""
    started = subprocess.run(
        [sys.executable, "-m", gloo_slices.__name__, str(tmp_path / "meet")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr[-2000:]
    assert started.stdout.split() == ["equal", "True", "asked", "30"]
