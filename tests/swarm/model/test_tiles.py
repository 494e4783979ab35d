"""Products by a matrix unit (AMX): the bits of the portable ones, and a unit with other bits is not used.

Where a processor has AVX-512 the machine code of the installation runs, and what it has no unit for is carried out by a
signal's handler (native/tile_traps.cpp); elsewhere the same source is compiled over plain C++ (native/tiles_plain.h).
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.model.quant.formats import Format, blocks_format
from swarm.model.quant.native import AMX, ISAS, Library, library
from swarm.model.quant.trial import choose_isa, first_difference, formats
from swarm.terminal import doctor

HERE = Path(__file__).parent / "native"
KERNELS = Path(__file__).parents[3] / "swarm/model/quant/native/kernels.cpp"
NAMES = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 NVFP4_ROWS".split()


@dataclass(frozen=True)
class Unit:
    """Kernels that may be told to use a matrix unit, and what makes it compute something else."""

    lib: Library
    fault: ctypes.c_int


def compiled(source: Path, to: Path, *flags: str) -> Path:
    words = ["-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-maybe-uninitialized", f"-I{HERE}", *flags]
    subprocess.run(["c++", *words, "-o", str(to), str(source), "-lpthread"], check=True)
    return to


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unit]:
    built, folder = library(), tmp_path_factory.mktemp("tiles")
    if built is None or shutil.which("c++") is None:
        pytest.skip("no kernels were built, or there is no C++ compiler")
    if built.best_isa < ISAS.index("avx512-vnni"):
        path = compiled(KERNELS, folder / "kernels.so", "-O1", "-DTILES_IN_PLAIN")
        yield Unit(Library(path), ctypes.c_int.in_dll(ctypes.CDLL(str(path)), "tiles_fault"))
        return
    traps = ctypes.CDLL(str(compiled(HERE / "tile_traps.cpp", folder / "traps.so", "-O1")))
    traps.tile_traps_on()
    yield Unit(Library(built.path), ctypes.c_int.in_dll(traps, "tiles_fault"))
    traps.tile_traps_off()


def packed(lib: Library, form: Format, out: int, columns: int, seed: int) -> torch.Tensor:
    stored = np.random.default_rng(seed).integers(0, 256, (out, columns // form.block * form.block_bytes), np.uint8)
    form.settle_scales(stored)
    data = torch.empty(lib.packed_bytes(form.number, out, columns), dtype=torch.uint8)
    lib.pack(form.number, stored.ctypes.data, None, (out, columns), data)
    return data


@pytest.mark.parametrize("name", NAMES)
@given(rows=st.integers(8, 45), out=st.integers(1, 40), wide=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=6, deadline=None)
def test_products_by_tiles_have_the_portable_bits(
    name: str, unit: Unit, rows: int, out: int, wide: int, seed: int
) -> None:
    form = blocks_format(name)
    assert form is not None
    columns = max(form.block, 32) * wide
    data = packed(unit.lib, form, out, columns, seed)
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=source) * torch.exp(torch.randn(rows, 1, generator=source))
    x[rows // 2] = torch.inf if seed % 3 == 0 else 0
    bias = torch.randn(out, generator=source)
    for dtype in (torch.float32, torch.bfloat16):
        found, right = (torch.empty(rows, out, dtype=dtype) for _ in range(2))
        unit.lib.product(form.number, data, x.to(dtype), bias, found, AMX)
        unit.lib.product(form.number, data, x.to(dtype), bias, right, 0)
        assert torch.equal(found.nan_to_num(1e9), right.nan_to_num(1e9))


def test_rows_that_lie_anywhere_have_the_same_bits(unit: Unit) -> None:
    """Experts: a matrix multiplies some rows of the call, in any order."""
    form = blocks_format("Q4_K")
    assert form is not None
    data = packed(unit.lib, form, 24, 512, 3)
    x = torch.randn(40, 512, generator=torch.Generator().manual_seed(4))
    picks = np.random.default_rng(5).integers(0, 40, 30)
    found, before = torch.empty(30, 24), unit.lib.best_isa
    parts = np.array([[data.data_ptr(), 0, found.data_ptr(), 24, form.number, 24, 0, 30]], np.int64)
    try:
        unit.lib.best_isa = AMX
        unit.lib.grouped(parts, x, picks, 30)
    finally:
        unit.lib.best_isa = before
    right = torch.empty(40, 24)
    unit.lib.product(form.number, data, x, None, right, 0)
    assert torch.equal(found, right[torch.from_numpy(picks)])


def test_a_unit_with_other_bits_is_set_aside(unit: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [form.name for form in formats(unit.lib)] == NAMES
    monkeypatch.setattr(unit.lib, "best_isa", AMX)
    choose_isa(unit.lib)
    assert unit.lib.best_isa == AMX and not unit.lib.set_aside
    monkeypatch.setattr(unit.lib, "set_aside", "")
    unit.fault.value = 1
    try:
        assert first_difference(unit.lib, AMX) == "Q4_0"
        choose_isa(unit.lib)
    finally:
        unit.fault.value = 0
    assert unit.lib.best_isa == AMX - 1
    monkeypatch.setattr(doctor, "library", lambda: unit.lib)
    said = doctor._kernels()
    assert said.standing == "warning" and "(avx512-bf16)" in said.found
    assert "amx is not used: products of Q4_0 have other bits" in said.advice
