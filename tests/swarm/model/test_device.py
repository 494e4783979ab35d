from __future__ import annotations

import psutil
import pytest
import torch

from swarm.base.errors import UsageError
from swarm.model.block import load_block
from swarm.model.device import choose_device, describe, free_bytes, usable_cores
from swarm.model.dtype import choose_dtype, computes_bfloat16, dtype_name
from swarm.model.probe import ROWS, probe
from tests.swarm.model.tiny import CPU, MemoryCheckpoint, random_model, tiny_config


def test_without_a_number_it_is_the_cpu() -> None:
    assert choose_device(None) == torch.device("cpu")


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "--gpu 2: this machine has no usable GPU.*; use --cpu"),
        (2, "--gpu 2: this machine has GPUs 0 to 1; use --cpu or"),
    ],
)
def test_an_absent_gpu_is_refused_with_what_there_is(monkeypatch: pytest.MonkeyPatch, count: int, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(UsageError, match=message):
        choose_device(2)


def test_a_card_that_this_build_has_no_code_for_is_refused_with_build_and_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(device: torch.device) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GeForce GTX 1080")
    monkeypatch.setattr("swarm.model.device._driver", lambda: "535.54")
    monkeypatch.setattr("swarm.model.device._try_kernel", refuse)
    with pytest.raises(UsageError, match=r"GTX 1080 .*driver 535\.54\): CUDA error: no kernel image .*or use --cpu$"):
        choose_device(0)


def test_a_build_for_cpus_alone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "hip"):
        monkeypatch.setattr(torch.version, name, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
    with pytest.raises(UsageError, match=r"no usable GPU: this torch \(.*\) is built for CPUs alone; use --cpu$"):
        choose_device(0)


def test_apples_gpu_is_number_0_by_the_same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 24 << 30)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 23 << 30)
    monkeypatch.setattr("swarm.model.device._try_kernel", lambda device: None)
    monkeypatch.setattr("swarm.model.device._cpu_name", lambda: "Apple M3")
    device = choose_device(0)
    assert device.type == "mps" and choose_dtype("auto", device) == torch.float16
    found = describe(device)
    assert (found.kind, found.name, found.memory_bytes) == ("mps", "GPU of Apple M3", 24 << 30)
    assert free_bytes(device) <= (1 << 30) - (512 << 20)
    with pytest.raises(UsageError, match="this machine has GPUs 0 to 0"):
        choose_device(1)


def test_free_memory_counts_what_torch_keeps_and_leaves_some_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 << 30, 24 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 << 30)
    assert free_bytes(torch.device("cuda", 0)) == (12 << 30) - (24 << 30) // 20


@pytest.mark.parametrize("native", [True, False])
def test_auto_takes_bfloat16_where_it_is_native(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert choose_dtype("auto", CPU) == (torch.bfloat16 if native else torch.float32)
    assert choose_dtype("float32", CPU) == torch.float32
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16
    assert dtype_name(torch.bfloat16) == "bfloat16"
    assert not computes_bfloat16(torch.device("meta"))


@pytest.mark.parametrize(("capability", "kind"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_cards_without_bfloat16_compute_in_float16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], kind: torch.dtype
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    card = torch.device("cuda", 1)
    assert choose_dtype("auto", card) == kind
    assert choose_dtype("float16", card) == torch.float16
    assert choose_dtype("float32", card) == torch.float32


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(UsageError, match="--dtype must be auto, float32, bfloat16 or float16, found half"):
        choose_dtype("half", CPU)
    with pytest.raises(UsageError, match="--dtype float16 is for GPUs without bfloat16"):
        choose_dtype("float16", CPU)


def test_hardware_of_this_machine() -> None:
    found = describe(CPU)
    assert found.kind == "cpu"
    assert found.name
    assert found.memory_bytes == psutil.virtual_memory().total
    assert 1 <= found.cores == usable_cores()
    assert found.threads == torch.get_num_threads()
    assert 0 < free_bytes(CPU) <= found.memory_bytes


@pytest.mark.gpu
def test_hardware_of_a_gpu() -> None:
    found = describe(choose_device(0))
    assert found.kind == "cuda"
    assert found.name == torch.cuda.get_device_name(0)
    assert 0 < free_bytes(torch.device("cuda", 0)) <= found.memory_bytes


@pytest.mark.parametrize(("first", "last"), [(0, 6), (0, 2), (2, 4), (4, 6), (5, 6)])
def test_a_probe_measures_layers_and_ends(first: int, last: int) -> None:
    block = load_block(MemoryCheckpoint(random_model(tiny_config("llama"))), first, last, CPU, torch.float32)
    found = probe(block, repeats=2)
    assert tuple(found.ms_per_layer) == tuple(found.end_ms) == ROWS
    assert all(ms > 0 for ms in found.ms_per_layer.values())
    assert all(ms >= 0 for ms in found.end_ms.values())
    assert found.free_bytes > 0
    assert 0 <= found.cpu_load <= 1
