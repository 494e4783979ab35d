"""Packed panels on a GPU: taken apart by torch, multiplied by Triton, against the compiled kernels on a CPU.

Triton's kernels run under its interpreter, in a process of its own: the variable that asks for it is read once."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import swarm.model.load
from swarm.model.block import load_block
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.model.quant.encoding import MovedColumns
from swarm.model.quant.formats import _HALVES, Format, blocks_format
from swarm.model.quant.matrix import PackedMatrix, hold
from swarm.model.quant.modules import PackedLinear
from swarm.model.quant.native import library
from swarm.model.quant.on_device import DeviceMatrix, on_device, take_to
from swarm.model.quant.panels import LIES, unpack
from tests.swarm.model import encoded_files as files
from tests.swarm.model.test_encoded import gptq, logits_of, tiny

FBGEMM = {"quant_method": "fbgemm_fp8"}

NAMES = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4",
    "FP8_E4M3", "FP8_E5M2", "NVFP4_ROWS",
)  # fmt: skip
pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")


def packed(name: str, shape: tuple[int, int], seed: int = 0) -> PackedMatrix:
    """Any codes under scales of a weight's usual size, no two alike."""
    form = blocks_format(name)
    assert form is not None
    rng = np.random.default_rng(seed)
    stored = rng.integers(0, 256, shape[0] * shape[1] // form.block * form.block_bytes, dtype=np.uint8)
    form.settle_scales(stored)
    vary(form, stored, rng)
    matrix = hold(stored, form, shape, None, "w", library())
    assert isinstance(matrix, PackedMatrix)
    return matrix


def vary(form: Format, stored: np.ndarray, rng: np.random.Generator) -> None:
    """Scales of their own for every block."""
    blocks = stored.reshape(-1, form.block_bytes)
    for at in _HALVES.get(form.name, ()):
        blocks[:, at : at + 2] = rng.normal(size=len(blocks)).astype("<f2").view(np.uint8).reshape(-1, 2)
    if form.name.startswith("FP8"):
        scales = rng.normal(size=len(blocks) // 4).astype("<f4") * 1e-2
        blocks[:, :4] = np.repeat(scales, 4).view(np.uint8).reshape(-1, 4)
    elif form.name == "NVFP4_ROWS":
        blocks[:, 4:6] = rng.integers(0, 0x50, (len(blocks), 2))
        blocks[:, :4] = np.array([-13.7], "<f4").view(np.uint8)
    elif form.name == "MXFP4":
        blocks[:, 0] = rng.integers(112, 122, len(blocks))


@pytest.mark.parametrize("name", NAMES)
def test_panels_are_taken_apart_to_the_bits_of_the_kernels(name: str) -> None:
    shape = (40, 512)
    matrix = packed(name, shape)
    panels = matrix.data.view(3, -1)
    found = unpack(LIES[matrix.form.number], panels, shape[1])[: shape[0]]
    assert torch.equal(found, matrix.rows(torch.arange(shape[0]))) and float(found.std()) > 0


def test_the_largest_and_least_exponents_of_mxfp4() -> None:
    form = blocks_format("MXFP4")
    assert form is not None
    stored = np.random.default_rng(1).integers(0, 256, 16 * 8 * form.block_bytes, dtype=np.uint8)
    stored.reshape(-1, form.block_bytes)[:, 0] = np.arange(128) % 4
    matrix = hold(stored, form, (16, 256), None, "w", library())
    assert isinstance(matrix, PackedMatrix)
    found = unpack(LIES[39], matrix.data.view(1, -1), 256)
    assert torch.equal(found, matrix.rows(torch.arange(16)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 70])
def test_a_matrix_on_a_device_multiplies_layer_by_layer(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.model.quant.on_device.SCRATCH_NUMBERS", 20 * 512)  # one panel at a time
    shape = (40, 512)
    held = packed(name, shape)
    matrix = on_device(held, torch.device("cpu"), triton=False)
    whole = held.rows(torch.arange(shape[0]))
    wanted = torch.tensor([39, 0, 17, 17])
    assert torch.equal(matrix.rows(wanted), whole[wanted]) and matrix.nbytes == held.nbytes
    x, bias = torch.randn(rows, shape[1]), torch.randn(shape[0])
    right = x.double() @ whole.double().T + bias.double()
    bound = 1e-5 * (x.double().abs() @ whole.double().abs().T) + 1e-6
    assert bool(((matrix.product(x, bias).double() - right).abs() <= bound).all())
    narrow = matrix.product(x.bfloat16(), None)
    assert narrow.dtype == torch.bfloat16 and narrow.shape == (rows, shape[0])


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_on_the_host(name: str) -> None:
    """On a device whose tensors hold nothing: a read of a number, or a tensor left on the CPU, raises."""
    shape, meta = (40, 512), torch.device("meta")
    matrix = on_device(packed(name, shape), meta, triton=False)
    x = torch.empty(3, shape[1], dtype=torch.bfloat16, device=meta)
    assert matrix.product(x, torch.empty(shape[0], device=meta)).device == meta
    assert matrix.rows(torch.zeros(5, dtype=torch.long, device=meta)).shape == (5, shape[1])
    with pytest.raises((RuntimeError, NotImplementedError)):
        matrix.product(x, None)[0, 0].item()


@pytest.mark.parametrize("kind", ["gptq", "fp8"])
def test_a_model_held_packed_on_a_device_is_the_model(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files.gptq(sym=False, desc_act=True) if kind == "gptq" else files.fp8(1, 0, "weight_scale")
    files.save_encoded(tmp_path / "model", tiny(), write, gptq(sym=False, desc_act=True) if kind == "gptq" else FBGEMM)
    store = ModelStore(tmp_path / "store", endpoint="http://127.0.0.1:9", hub_cache=tmp_path / "cache")
    checkpoint = open_model(str(tmp_path / "model"), store)
    expected = logits_of(checkpoint, [1, 5, 9, 2, 7], (0, 3))
    whole = swarm.model.load._load_piece

    def brought(*given: Any) -> torch.nn.Module:
        piece = whole(*given[:5], "stored", *given[6:])
        take_to(piece, torch.device("cpu"))
        return piece

    monkeypatch.setattr(swarm.model.load, "_load_piece", brought)
    block = load_block(checkpoint, 0, 3, torch.device("cpu"), torch.float32, blocked=False, weights="stored")
    kinds = {type(m.matrix.held if isinstance(m.matrix, MovedColumns) else m.matrix) for m in linears(block)}
    assert kinds == {DeviceMatrix}
    found = logits_of(checkpoint, [1, 5, 9, 2, 7], (0, 3))
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)


def linears(block: Any) -> list[PackedLinear]:
    return [m for m in block.loaded.model.modules() if isinstance(m, PackedLinear)]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton")
@pytest.mark.parametrize(("capability", "rows"), [(75, "fp16"), (80, "bf16"), (90, "bf16"), (90, "fp32")])
@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0", "MXFP4", "FP8_E4M3", "NVFP4_ROWS"])
def test_kernels_compile_for_cards_that_are_not_here(name: str, capability: int, rows: str) -> None:
    """To the card's own code: triton brings the assembler along."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from swarm.model.quant import triton_panels

    form = blocks_format(name)
    assert form is not None
    lie = LIES[form.number]
    pointers = {"x_at": rows, "w_at": "u8", "table_at": "u8", "bias_at": "fp32", "y_at": rows}
    signature = {at: f"*{kind}" for at, kind in pointers.items()}
    signature |= dict.fromkeys(("rows", "outs", "columns", "panel_bytes"), "i32")
    constants = triton_panels.constants(lie, bias=True)
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(triton_panels._product, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
    assert compiled.asm["cubin"] and compiled.metadata.shared <= 64 << 10  # what every card since Turing has


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_packed_matrix_on_a_gpu_is_the_one_on_the_cpu(name: str) -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    held = packed(name, (1000, 1024))
    matrix = on_device(held, device, triton=True)
    assert torch.equal(matrix.rows(torch.arange(1000, device=device)).cpu(), held.rows(torch.arange(1000)))
    whole = held.rows(torch.arange(1000)).double()
    x = torch.randn(80, 1024).bfloat16()
    found = matrix.product(x[:40].to(device), None).cpu()
    close = x[:40].double() @ whole.T
    size = x[:40].double().abs() @ whole.abs().T
    assert bool(((found.double() - close).abs() <= 2**-8 * close.abs() + 2**-8 * size).all())
    assert torch.equal(matrix.product(x[7:8].to(device), None).cpu(), found[7:8])
    torch.testing.assert_close(matrix.product(x.to(device), None).cpu()[:40], found, rtol=0.05, atol=0.05)


INTERPRETED = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from swarm.model.quant.panels import LIES, TABLES
from swarm.model.quant.triton_panels import product
from tests.swarm.model.test_panels import NAMES, packed

torch.manual_seed(0)
for name in NAMES:
    shape = (40, 512 if name != "Q8_0" else 544)
    matrix, lie = packed(name, shape), LIES[packed(name, shape).form.number]
    whole = matrix.rows(torch.arange(shape[0]))
    table = torch.tensor(TABLES[lie.table], dtype=torch.uint8)
    x, bias = torch.randn(19, shape[1]), torch.randn(shape[0])
    found = product(lie, matrix.data, table, x, bias, shape[0])
    right = (x.double() @ whole.double().T + bias.double())
    size = x.double().abs() @ whole.double().abs().T
    assert bool(((found.double() - right).abs() <= 1e-5 * size + 1e-6).all()), name
    for rows in ([0], [18], [3, 17, 4]):
        assert torch.equal(product(lie, matrix.data, table, x[rows], bias, shape[0]), found[rows]), name
    if size.max() < 60_000:  # in bfloat16 the interpreter multiplies bit patterns: left to the test on a GPU
        narrow = product(lie, matrix.data, table, x.half(), None, shape[0])
        close = x.half().double() @ whole.double().T
        assert bool(((narrow.double() - close).abs() <= 2 ** -11 * close.abs() + 2 ** -10 * size).all()), name
print("all", len(NAMES))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton")
def test_triton_multiplies_by_every_format_under_its_interpreter() -> None:
    done = subprocess.run([sys.executable, "-c", INTERPRETED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == f"all {len(NAMES)}"
