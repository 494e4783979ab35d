"""Experts as stored on a GPU: the numbers of the expanded model's, by Triton and an expert after the other.

Triton's kernels run under its interpreter, in a process of its own: the variable that asks for it is read once."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import swarm.model.load
from swarm.model.block import Block, load_block
from swarm.model.capturing import can_capture
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.model.gpu import Gpu
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.packing import plan_packing
from swarm.model.quant.experts import PackedExperts, pair
from swarm.model.quant.native import library
from swarm.model.quant.on_device import DeviceStack, take_to
from swarm.model.rows import no_commits
from tests.swarm.model.fake_cuda import FakeCuda
from tests.swarm.model.test_experts import FILES, LAYOUT, TEXT, experts_of, logits
from tests.swarm.model.tiny import CPU, certain, random_model, tiny_config

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")
KINDS = ("qwen3-moe, a GGUF", "gpt-oss, a GGUF", "gpt-oss, MXFP4 in stacks", "mixtral, GPTQ with moved columns")


def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on what is loaded as stored goes where GPUs keep it, on the CPU."""
    whole = swarm.model.load._load_piece

    def brought(*given: Any) -> torch.nn.Module:
        piece = whole(*given)
        if given[5] != "expanded":
            take_to(piece, CPU)
        return piece

    monkeypatch.setattr(swarm.model.load, "_load_piece", brought)


@pytest.mark.parametrize("file", KINDS)
def test_experts_on_a_device_are_those_of_the_expanded_model(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(tmp_path / "store", endpoint="http://127.0.0.1:9", hub_cache=tmp_path / "cache")
    checkpoint = open_model(str(FILES[file][0](tmp_path)), store)
    exact, _ = logits(checkpoint, (0, 3), "expanded")
    on_a_device(monkeypatch)
    found, (block,) = logits(checkpoint, (0, 3), "auto")
    torch.testing.assert_close(found, exact, rtol=0, atol=5e-5)
    layers = experts_of(block)
    assert block.computes_in == "float32" and layers
    for experts in layers:
        assert isinstance(experts, PackedExperts) and experts.few == 0
        assert all(isinstance(stack, DeviceStack) for stack in experts.stacks.values())
        expanded = "moved columns" in file  # no panels of one kind: numbers, of the rows' type
        assert (len(experts.stacks) == 0) == expanded and hasattr(experts, "down_proj") == expanded
    assert not can_capture(block.loaded.model, Gpu(CPU, FakeCuda()), torch.bfloat16)


def test_experts_may_stay_as_stored_on_a_gpu() -> None:
    model = random_model(tiny_config("qwen3-moe"))
    packing = plan_packing(model, "stored", torch.device("cuda", 0))
    assert packing.experts.shapes and not packing.expanded
    assert plan_packing(model, "expanded", torch.device("cuda", 0)).expanded


def test_pairs_on_a_device_are_in_the_order_of_the_rows() -> None:
    pairs = pair(torch.tensor([[3, 1], [0, 3], [2, 2]]))
    assert pairs.rows.tolist() == [0, 0, 1, 1, 2, 2] and pairs.experts.tolist() == [3, 1, 0, 3, 2, 2]
    assert pairs.place.tolist() == [[0, 1], [2, 3], [4, 5]]


INTERPRETED = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import sys, tempfile
from pathlib import Path
import pytest, torch
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.model.quant import on_device, triton_panels
from swarm.model.quant.panels import LIES, TABLES
from tests.swarm.model.test_device_experts import KINDS, on_a_device
from tests.swarm.model.test_experts import FILES, experts_of, logits
from tests.swarm.model.test_panels import packed

torch.manual_seed(0)
for name in ("Q4_K", "Q6_K", "NVFP4_ROWS"):
    shape, matrices = (40, 256), [packed(name, (40, 256), seed) for seed in range(5)]
    lie = LIES[matrices[0].form.number]
    table = torch.tensor(TABLES[lie.table], dtype=torch.uint8)
    x, bias = torch.randn(3, shape[1]), torch.randn(5, shape[0])
    rows, experts = torch.tensor([0, 0, 2, 1, 2]), torch.tensor([4, 1, 1, 0, 3])
    data = torch.stack([matrix.data for matrix in matrices])
    for own in (bias, None):
        found = triton_panels.routed(lie, data, table, x, rows, experts, own, shape[0])
        for i, (row, expert) in enumerate(zip(rows, experts)):
            b = None if own is None else own[expert]
            one = triton_panels.product(lie, data[expert], table, x[row : row + 1], b, shape[0])
            assert torch.equal(found[i : i + 1], one), name
with pytest.MonkeyPatch.context() as patch:
    whole = on_device.take_experts_to
    patch.setattr(on_device, "take_experts_to", lambda *given: whole(*given[:3], True))
    on_a_device(patch)
    for file in KINDS[1:2]:
        folder = Path(tempfile.mkdtemp(dir=sys.argv[1]))
        store = ModelStore(folder / "store", endpoint="http://127.0.0.1:9", hub_cache=folder / "cache")
        checkpoint = open_model(str(FILES[file][0](folder)), store)
        exact, _ = logits(checkpoint, (0, 3), "expanded")
        found, (block,) = logits(checkpoint, (0, 3), "auto")
        assert all(experts.few >= 40 for experts in experts_of(block))
        torch.testing.assert_close(found, exact, rtol=0, atol=5e-5)
print("all")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton")
def test_triton_multiplies_by_experts_under_its_interpreter(tmp_path: Path) -> None:
    """In one call, the bits of each expert's matrix alone; and whole models by it."""
    given = [sys.executable, "-c", INTERPRETED, str(tmp_path)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1] == "all"


@pytest.mark.gpu
@pytest.mark.parametrize("file", KINDS)
def test_experts_on_a_gpu_are_those_of_the_expanded_model(file: str, tmp_path: Path) -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    store = ModelStore(tmp_path / "store", endpoint="http://127.0.0.1:9", hub_cache=tmp_path / "cache")
    checkpoint = open_model(str(FILES[file][0](tmp_path)), store)
    exact, _ = logits(checkpoint, (0, 3), "expanded")
    block: Block = load_block(checkpoint, 0, 3, device, torch.float32, weights="stored")
    kv = KVPool(block, 1 << 30).open(LAYOUT, 0, 3)
    (found,) = block.forward([Job(kv, no_commits(), certain(TEXT, 0, LAYOUT), None)])
    torch.testing.assert_close(found.cpu(), exact, rtol=0, atol=2e-3)
