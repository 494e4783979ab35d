"""FP8 and NVFP4 of safetensors, held and multiplied packed: the same numbers, and products within their bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.model.quant.floats import Float4, ScaledFloats
from swarm.model.quant.formats import blocks_format, find_format
from swarm.model.quant.matrix import FLOATS, KERNEL, PackedMatrix, hold
from swarm.model.quant.native import Library, library

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")

TILES = ((128, 128), (16, 256), (1, 128), (1, 0), (0, 0))
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def lib() -> Library:
    found = library()
    assert found is not None
    return found


def held(encoding: Any, parts: dict[str, torch.Tensor], shape: tuple[int, int]) -> PackedMatrix:
    encoding.check(parts)
    blocks = encoding.blocks(parts)
    form = blocks_format(blocks.format)
    assert form is not None
    matrix = hold(blocks.data.numpy().reshape(-1), form, shape, None, "w", lib())
    assert isinstance(matrix, PackedMatrix)
    return matrix


def float8(shape: tuple[int, int], tile: tuple[int, int], dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """Any finite codes, numbers below the smallest normal one among them."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, shape, dtype=np.uint8)
    none = (codes & 0x7F) == 0x7F if dtype == torch.float8_e4m3fn else (codes & 0x7C) == 0x7C
    codes[none] &= 0x83
    size = [1 if not t else -(-n // t) for n, t in zip(shape, tile, strict=True)]
    scales = torch.from_numpy(rng.normal(size=size).astype(np.float32) * rng.choice([1e-4, 1, 30]))
    return {"codes": torch.from_numpy(codes).view(dtype), "scales": scales}


def nvfp4(shape: tuple[int, int], whole: float, seed: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    rows, columns = shape
    scales = rng.integers(0, 0x7F, (rows, columns // 16), dtype=np.uint8)
    parts = {"codes": torch.from_numpy(rng.integers(0, 256, (rows, columns // 2), dtype=np.uint8))}
    parts["scales"] = torch.from_numpy(scales).view(torch.float8_e4m3fn)
    return parts | {"whole": torch.tensor([whole])}


@given(st.sampled_from(TILES), st.sampled_from(FLOAT8), st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_fp8_products_have_the_bits_of_the_unpacked_matrix(
    tile: tuple[int, int], dtype: torch.dtype, out: int, runs: int, seed: int
) -> None:
    shape = (out, 32 * runs)
    encoding = ScaledFloats("fp8", tile)
    parts = float8(shape, tile, dtype, seed)
    matrix, whole = held(encoding, parts, shape), encoding.rows(parts, 0, out)
    assert matrix.kernel == FLOATS
    assert torch.equal(matrix.rows(torch.arange(out)), whole)
    x = torch.randn(9, shape[1], generator=torch.Generator().manual_seed(seed))
    bias = torch.randn(out, generator=torch.Generator().manual_seed(seed + 1))
    right = lib().linear(x, whole, bias)
    found = matrix.product(x, bias)
    assert torch.equal(found, right)
    for rows in ([0], [3, 8], list(range(7))):
        assert torch.equal(matrix.product(x[rows], bias), right[rows])
    narrow = matrix.product(x.bfloat16(), bias)
    assert torch.equal(narrow, lib().linear(x.bfloat16().float(), whole, bias).bfloat16())


@given(
    st.integers(1, 40), st.integers(1, 12), st.sampled_from((0.37, 1.0, 2688.0)), st.booleans(), st.integers(0, 2**31)
)
@settings(max_examples=60, deadline=None)
def test_nvfp4_products_stay_within_the_stated_bound(
    out: int, runs: int, scale: float, divided: bool, seed: int
) -> None:
    shape = (out, 32 * runs)
    encoding = Float4("nvfp4", 16, divided)
    parts = nvfp4(shape, scale, seed)
    matrix, whole = held(encoding, parts, shape), encoding.rows(parts, 0, out)
    assert matrix.kernel == KERNEL
    assert torch.equal(matrix.rows(torch.arange(out)), whole)
    x = torch.randn(6, shape[1], generator=torch.Generator().manual_seed(seed))
    found, right = matrix.product(x, None), x.double() @ whole.double().T
    largest = x.abs().reshape(6, runs, 32).amax(2).double()
    size = whole.abs().double().reshape(out, runs, 32).sum(2)
    bound = largest / 254 @ size.T + 1e-5 * (x.abs().double() @ whole.abs().double().T)
    assert bool(((found.double() - right).abs() <= bound).all())
    assert torch.equal(matrix.product(x[2:3], None), found[2:3])


@pytest.mark.parametrize("name", ["FP8_E4M3", "FP8_E5M2", "NVFP4_ROWS"])
def test_every_instruction_set_and_any_number_of_threads_gives_the_same_bits(name: str) -> None:
    shape = (200, 352)
    if name == "NVFP4_ROWS":
        matrix = held(Float4("nvfp4", 16), nvfp4(shape, 12.5, 5), shape)
    else:
        kind = FLOAT8[name == "FP8_E5M2"]
        matrix = held(ScaledFloats("fp8", (128, 128)), float8(shape, (128, 128), kind, 5), shape)
    x = torch.randn(21, shape[1], generator=torch.Generator().manual_seed(1))
    right = matrix.product(x, None)
    threads = torch.get_num_threads()
    for isa in range(lib().best_isa + 1):
        out = torch.empty_like(right)
        lib().product(matrix.form.number, matrix.data, x, None, out, isa)
        assert torch.equal(out, right)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(matrix.product(x, None), right)
    finally:
        torch.set_num_threads(threads)


def test_a_packed_matrix_takes_a_tenth_more_than_stored_at_most() -> None:
    shape = (512, 1024)
    for tile in TILES:
        parts = float8(shape, tile, FLOAT8[0], 1)
        stored = sum(part.nbytes for part in parts.values())
        assert held(ScaledFloats("fp8", tile), parts, shape).nbytes <= 1.1 * stored
    parts = nvfp4(shape, 1.0, 1)
    assert held(Float4("nvfp4", 16), parts, shape).nbytes <= 1.1 * sum(part.nbytes for part in parts.values())


def test_what_is_no_number_stays_visible() -> None:
    parts = float8((16, 64), (1, 0), FLOAT8[0], 2)
    matrix = held(ScaledFloats("fp8", (1, 0)), parts, (16, 64))
    x = torch.ones(2, 64)
    x[1, 5] = float("nan")
    found = matrix.product(x, None)
    assert bool(found[0].isfinite().all()) and bool(found[1].isnan().all())


@pytest.mark.parametrize(("encoding", "why"), [(ScaledFloats("fp8", (64, 64)), "runs"), (Float4("gpt-oss", 16), "odd")])
def test_what_fits_no_panel_is_expanded(encoding: ScaledFloats | Float4, why: str) -> None:
    if isinstance(encoding, ScaledFloats):
        assert encoding.kernel_format is None and encoding.blocks(float8((64, 64), (64, 64), FLOAT8[0], 1)) is None
    else:
        assert encoding.blocks(nvfp4((4, 48), 1.0, 1)) is None


def test_a_file_cannot_name_our_own_blocks() -> None:
    for name in ("FP8_E4M3", "FP8_E5M2", "NVFP4_ROWS"):
        assert find_format(f"gguf:{name}") is None and find_format(name) is None and blocks_format(name) is not None


@pytest.mark.parametrize("name", ["FP8_E4M3", "FP8_E5M2", "NVFP4_ROWS"])
def test_counted_bytes_make_finite_weights(name: str) -> None:
    """What fingerprints are computed over."""
    form = blocks_format(name)
    assert form is not None
    stored = np.random.default_rng(0).integers(0, 256, 32 * 4 * form.block_bytes, dtype=np.uint8)
    form.settle_scales(stored)
    matrix = hold(stored, form, (32, 128), None, "w", lib())
    weights = matrix.rows(torch.arange(32))
    assert bool(weights.isfinite().all()) and float(weights.std()) > 1e-4
