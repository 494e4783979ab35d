"""Weights that stay as they are stored: the same numbers, the stated error, the same bits in any company."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from swarm.base.errors import ModelError
from swarm.model.files.gguf_file import READABLE
from swarm.model.quant import matrix as matrix_module
from swarm.model.quant.formats import _HALVES, Format, find_format
from swarm.model.quant.matrix import PackedMatrix, StoredMatrix, dense, hold
from swarm.model.quant.native import ISAS, Library, library

KERNELS = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split()


@pytest.fixture(scope="module")
def lib() -> Library:
    found = library()
    if found is None:
        pytest.skip("no kernels were built: install with a C++ compiler")
    return found


def form_of(name: str) -> Format:
    found = find_format(f"gguf:{name}")
    assert found is not None
    return found


def blocks(form: Format, rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random stored bytes [rows, bytes of a row] with scales of a usual size."""
    rng = np.random.default_rng(seed)
    stored = rng.integers(0, 256, (rows * columns // form.block, form.block_bytes), dtype=np.uint8)
    for at in _HALVES.get(form.name, ()):
        scale = (rng.standard_normal(len(stored)) * 0.01).astype(np.float16)
        stored[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
    if form.name == "MXFP4":
        stored[:, 0] = rng.integers(116, 126, len(stored))
    if form.name == "TQ2_0":
        stored[:, :64] &= ~(stored[:, :64] >> 1 & 0x55)
    return stored.reshape(rows, -1)


def unpacked(form: Format, stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    values: Any = gguf.dequantize(stored, gguf.GGMLQuantizationType(form.number))
    return np.asarray(values, np.float32).reshape(len(stored), -1)


def bits(tensor: torch.Tensor) -> NDArray[np.int32]:
    return tensor.numpy().view(np.int32)


@pytest.mark.parametrize("name", KERNELS)
def test_rows_are_those_of_gguf_to_the_bit(name: str, lib: Library) -> None:
    form = form_of(name)
    stored = blocks(form, 37, 768)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1))
    matrix = hold(stored, form, (37, 768), order, "m", lib)
    assert isinstance(matrix, PackedMatrix)
    want = torch.from_numpy(unpacked(form, stored))[order]
    assert np.array_equal(bits(dense(matrix, torch.float32)), bits(want))
    assert np.array_equal(bits(matrix.rows(torch.tensor([36, 0, 7]))), bits(want[[36, 0, 7]]))


@pytest.mark.parametrize("name", [*KERNELS, "TQ2_0"])
@pytest.mark.parametrize("rows", [32, 37])
def test_a_matrix_that_is_read_in_parts_is_the_same(
    name: str, rows: int, lib: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, done = form_of(name), []
    stored = blocks(form, rows, 512)
    at_once = hold(stored, form, (rows, 512), None, "m", lib)
    monkeypatch.setattr(matrix_module, "PART_BYTES", 1)
    matrix = hold(stored, form, (rows, 512), None, "m", lib, done.append)
    assert torch.equal(matrix.data, at_once.data)
    assert done == [min(16 * part, rows) * stored.shape[1] for part in range(1, -(-rows // 16) + 1)]
    if name in _HALVES:
        stored[-1, _HALVES[name][0] : _HALVES[name][0] + 2] = np.array([np.nan], np.float16).view(np.uint8)
        with pytest.raises(ModelError, match="m holds values that are not finite"):
            hold(stored, form, (rows, 512), None, "m", lib)


def test_rows_that_are_no_whole_panels_are_not_packed(lib: Library) -> None:
    form = form_of("Q8_0")
    stored = blocks(form, 40, 64)
    packed = torch.empty(lib.packed_bytes(form.number, 40, 64), dtype=torch.uint8)
    for some in (range(8, 40), range(0, 24), range(0, 41), range(-16, 16)):
        with pytest.raises(ValueError, match="without a kernel"):
            lib.pack(form.number, stored.ctypes.data, None, (40, 64), packed, some)


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=8)
@given(rows=st.integers(1, 21), out=st.integers(1, 50), wide=st.integers(1, 3), seed=st.integers(0, 99))
def test_products_stay_within_the_stated_bound_and_alone_or_together_give_the_same_bits(
    name: str, lib: Library, rows: int, out: int, wide: int, seed: int
) -> None:
    form, columns = form_of(name), 256 * wide
    stored = blocks(form, out, columns, seed)
    matrix = hold(stored, form, (out, columns), None, "m", lib)
    assert isinstance(matrix, PackedMatrix)
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=source) * torch.exp(torch.randn(rows, 1, generator=source))
    bias = torch.randn(out, generator=source)
    y = matrix.product(x, bias)
    weights = torch.from_numpy(unpacked(form, stored)).double()
    largest = x.reshape(rows, -1, 32).abs().amax(2).double()
    bound = largest / 254 @ weights.abs().reshape(out, -1, 32).sum(2).T
    size = x.double().abs() @ weights.abs().T + bias.abs()
    assert ((y - (x.double() @ weights.T + bias)).abs() <= bound * 1.0001 + size * 1e-5).all()
    for row in range(rows):
        assert torch.equal(matrix.product(x[row : row + 1], bias)[0], y[row])
    together = torch.cat([x[-1:], torch.full((3, columns), 1e3), x])
    assert torch.equal(matrix.product(together, bias)[4:], y)


@pytest.mark.parametrize("name", KERNELS)
def test_every_instruction_set_and_any_number_of_threads_gives_the_same_bits(name: str, lib: Library) -> None:
    form = form_of(name)
    matrix = hold(blocks(form, 530, 512), form, (530, 512), None, "m", lib)
    assert isinstance(matrix, PackedMatrix)
    x = torch.randn(11, 512, generator=torch.Generator().manual_seed(2))
    x[3] = 0
    want = matrix.product(x, None)
    for isa in range(lib.best_isa + 1):
        out = torch.empty_like(want)
        lib.product(form.number, matrix.data, x, None, out, isa)
        assert torch.equal(out, want), ISAS[isa]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(matrix.product(x, None), want)
    finally:
        torch.set_num_threads(before)


def test_the_arithmetic_is_what_the_module_says(lib: Library) -> None:
    """Q8_0 by hand: rounded bytes, integer sums, one fused addition a block."""
    form = form_of("Q8_0")
    stored = blocks(form, 3, 64)
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(3)).numpy()
    y = hold(stored, form, (3, 64), None, "m", lib).product(torch.from_numpy(x), None)[0]
    for row in range(3):
        total = np.float32(0)
        for b in range(2):
            block, part = stored[row].reshape(2, 34)[b], x[0, 32 * b : 32 * b + 32]
            scale = np.float32(np.abs(part).max() / np.float32(127))
            rounded = np.rint(part * np.float32(1 / scale)).astype(np.int64)
            factor = np.float32(block[:2].view(np.float16)[0]) * scale
            total = np.float32(
                np.float64(int(rounded @ block[2:].view(np.int8))) * np.float64(factor) + np.float64(total)
            )
        assert y[row].item() == float(total)


def test_what_is_not_finite_stays_visible(lib: Library) -> None:
    form = form_of("Q4_K")
    matrix = hold(blocks(form, 16, 256), form, (16, 256), None, "m", lib)
    for bad in (float("nan"), float("inf"), float("-inf")):
        x = torch.ones(2, 256)
        x[0, 100] = bad
        y = matrix.product(x, None)
        assert torch.isnan(y[0]).all() and torch.isfinite(y[1]).all()


@pytest.mark.parametrize("name", ["Q4_K", "IQ2_XS", "TQ2_0"])
def test_without_a_kernel_a_matrix_is_unpacked_in_parts(name: str) -> None:
    form = form_of(name)
    stored = blocks(form, 300, 512)
    order = torch.arange(299, -1, -1)
    matrix = hold(stored, form, (300, 512), order, "m", None)
    assert isinstance(matrix, StoredMatrix) and matrix.nbytes == stored.nbytes
    want = torch.from_numpy(unpacked(form, stored))[order]
    x = torch.randn(5, 512)
    assert torch.equal(matrix.rows(torch.tensor([2, 299])), want[[2, 299]])
    torch.testing.assert_close(matrix.product(x, torch.ones(300)), x @ want.T + 1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", KERNELS)
def test_packed_matrices_take_a_tenth_more_than_stored_at_most(name: str, lib: Library) -> None:
    form = form_of(name)
    stored = 1536 * 768 // form.block * form.block_bytes
    assert lib.packed_bytes(form.number, 1536, 768) <= 1.1 * stored


@pytest.mark.parametrize("name", [n for n in KERNELS if n != "MXFP4"])
def test_scales_that_are_not_finite_are_refused_by_name(name: str, lib: Library) -> None:
    form = form_of(name)
    stored = blocks(form, 16, 512)
    at = _HALVES[name][-1]
    stored[5, at : at + 2] = np.array([np.inf], np.float16).view(np.uint8)
    with pytest.raises(ModelError, match=r"blk\.7 holds values that are not finite"):
        hold(stored, form, (16, 512), None, "blk.7", lib)


FORMATS = sorted(name for name in READABLE if find_format(f"gguf:{name}") is not None)


@pytest.mark.parametrize("name", FORMATS)
@given(seed=st.integers(0, 2**32 - 1), filled=st.integers(0, 6), with_kernel=st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_bytes_are_finite_numbers_or_refused_by_name(name: str, seed: int, filled: int, with_kernel: bool) -> None:
    """Of every format that is read. Some bytes are all ones, as scales are that are no numbers; and cut or longer bytes
    and other shapes never fit."""
    form, rng = form_of(name), np.random.default_rng(seed)
    stored = rng.integers(0, 256, (2, form.block_bytes), dtype=np.uint8)
    stored[:, rng.integers(form.block_bytes, size=filled)] = 0xFF
    if filled == 6:
        form.settle_scales(stored)
    lib = library() if with_kernel else None
    wrong = [(stored.reshape(-1)[:-1], (2, form.block)), (stored, (2, form.block + 1)), (stored, (1, form.block))]
    for data, shape in wrong:
        with pytest.raises(ModelError, match="the-tensor of shape .*does not fit"):
            hold(data, form, shape, None, "the-tensor", lib)
    try:
        matrix = hold(stored, form, (2, form.block), None, "the-tensor", lib)
    except ModelError as error:
        assert filled < 6 and "the-tensor holds" in str(error)
        return
    numbers = matrix.rows(torch.arange(2))
    assert torch.isfinite(numbers).all()
    assert np.array_equal(bits(numbers), bits(torch.from_numpy(unpacked(form, stored))))


def test_codes_that_stand_for_nothing_are_refused_by_name() -> None:
    form = form_of("TQ2_0")
    stored = blocks(form, 4, 512)
    stored[2, 7] |= 0x30
    with pytest.raises(ModelError, match=r"blk\.7 holds codes that stand for no number"):
        hold(stored, form, (4, 512), None, "blk.7", None)


@pytest.mark.parametrize("power", [253, 254, 255])
def test_powers_beyond_floats_are_refused_by_name(power: int) -> None:
    form = form_of("MXFP4")
    stored = blocks(form, 4, 64)
    stored[2, 0] = power
    with pytest.raises(ModelError, match=r"blk\.7 holds values that are not finite"):
        hold(stored, form, (4, 64), None, "blk.7", None)


def test_a_scale_in_four_parts_that_is_not_finite_is_refused_by_name() -> None:
    form = form_of("IQ1_M")
    stored = np.zeros((1, form.block_bytes), np.uint8)
    stored[0, [53, 55]] = 0xC0, 0x70  # 0x7c00: infinite
    assert not np.isfinite(unpacked(form, stored)).all()
    with pytest.raises(ModelError, match=r"blk\.7 holds values that are not finite"):
        hold(stored, form, (1, 256), None, "blk.7", None)


def test_bytes_that_do_not_fit_the_shape_are_refused_by_name(lib: Library) -> None:
    form = form_of("Q4_K")
    for shape in ((16, 500), (15, 512), (16, 512, 1)):
        with pytest.raises(ModelError, match=r"blk\.7 .*does not fit"):
            hold(blocks(form, 16, 512), form, shape, None, "blk.7", lib)


def test_rows_beyond_the_matrix_are_refused(lib: Library) -> None:
    form = form_of("Q8_0")
    matrix = hold(blocks(form, 20, 32), form, (20, 32), None, "m", lib)
    for wanted in ([20], [-1], [3, 31]):
        with pytest.raises(IndexError):
            matrix.rows(torch.tensor(wanted))
