"""Which device a node computes on, and what that hardware is called."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from swarm.base.errors import UsageError
from swarm.base.settled import collect

KEPT_BACK = 512 << 20
"""Bytes of a GPU (or a twentieth of it) that are left for activations, graphs and what libraries take."""


@dataclass(frozen=True)
class DeviceHardware:
    """A device in words, for status, dashboard and receipts.

    kind "cpu", "cuda" or "mps"; memory_bytes of the device (RAM for a CPU, for mps what it may have of it); cores of
    the CPU that this process may use; threads that torch computes with; driver and uuid are empty where unknown.
    """

    kind: str
    name: str
    memory_bytes: int
    cores: int
    threads: int
    driver: str = ""
    uuid: str = ""


def choose_device(gpu: int | None) -> torch.device:
    """GPU `gpu`, or the CPU for None. CUDA's numbers, which are AMD's too where torch was built for ROCm; without such
    GPUs Apple's (mps) is number 0. Raises UsageError naming what there is when the GPU is absent."""
    if gpu is None:
        return torch.device("cpu")
    devices = _gpus()
    if not 0 <= gpu < len(devices):
        several = f"this machine has GPUs 0 to {len(devices) - 1}"
        here = several if devices else f"this machine has no usable GPU{_why_none()}"
        raise UsageError(f"--gpu {gpu}: {here}; use --cpu{' or another number' if devices else ''}")
    device = devices[gpu]
    try:
        _try_kernel(device)
    except RuntimeError as error:
        raise UsageError(
            f"--gpu {gpu}: {_gpu_name(device)} computes nothing with this torch ({_build()}, driver "
            f"{_driver() or 'unknown'}): {(str(error).splitlines() or ['unknown'])[0]}; update the driver, install a "
            "torch built for this card and driver (https://pytorch.org/get-started/locally), or use --cpu"
        ) from error
    return device


def _gpus() -> list[torch.device]:
    """What `--gpu` counts."""
    if torch.cuda.is_available():
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [torch.device("mps", 0)] if torch.backends.mps.is_available() else []


def _why_none() -> str:
    """Why torch sees no GPU, where its build is the reason."""
    if torch.version.cuda is None and torch.version.hip is None and not torch.backends.mps.is_built():
        return f": this torch ({torch.__version__}) is built for CPUs alone"
    return ""


def _try_kernel(device: torch.device) -> None:
    """Compute one sum: a build without code for a card, or too new for its driver, says so at the first kernel only."""
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        if float(torch.ones(8, device=device).sum()) != 8.0:
            raise RuntimeError("it adds wrongly")


def _gpu_name(device: torch.device) -> str:
    return f"GPU of {_cpu_name()}" if device.type == "mps" else torch.cuda.get_device_name(device)


def _build() -> str:
    """What torch was built for, in words."""
    hip = torch.version.hip
    return f"{torch.__version__}, " + (f"ROCm {hip}" if hip else f"CUDA {torch.version.cuda or 'none'}")


def describe(device: torch.device) -> DeviceHardware:
    """The hardware behind a device."""
    cores, threads = usable_cores(), torch.get_num_threads()
    if device.type == "mps":
        return DeviceHardware("mps", _gpu_name(device), torch.mps.recommended_max_memory(), cores, threads)
    if device.type != "cuda":
        return DeviceHardware("cpu", _cpu_name(), psutil.virtual_memory().total, cores, threads)
    properties = torch.cuda.get_device_properties(device)
    uuid = str(getattr(properties, "uuid", ""))
    return DeviceHardware("cuda", properties.name, properties.total_memory, cores, threads, _driver(), uuid)


def describe_all(devices: Sequence[torch.device]) -> DeviceHardware:
    """The hardware behind several devices as one: memory of all of them, and the first one's name, driver and uuid."""
    first, *others = (describe(device) for device in devices)
    if not others:
        return first
    name = say_devices([first.name, *(other.name for other in others)])
    return replace(first, name=name, memory_bytes=first.memory_bytes + sum(other.memory_bytes for other in others))


def say_devices(names: Sequence[str]) -> str:
    """Names of devices in a line, each kind once: "2 x RTX 4090, RTX 3060"."""
    return ", ".join(f"{names.count(n)} x {n}" if names.count(n) > 1 else n for n in dict.fromkeys(names))


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    with contextlib.suppress(AttributeError, OSError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_bytes(device: torch.device) -> int:
    """Memory that a new block or session may take now, within a container's limit where there is one."""
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for whoever asks
        return max(0, int(free) + int(held) - max(KEPT_BACK, whole // 20))
    free = int(psutil.virtual_memory().available)
    if device.type == "mps":
        own = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return max(0, min(own, free) - KEPT_BACK)
    limit = _cgroup_free()
    return free if limit is None else min(free, limit)


def tidy(*devices: torch.device) -> None:
    """Give memory of what was dropped back now: what is loaded next may need it."""
    collect()
    for device in devices:
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.empty_cache()
        elif device.type == "mps":
            torch.mps.empty_cache()


def _cgroup_free() -> int | None:
    """What is left under the memory limit of this container (cgroup v2); None where there is no limit."""
    base = Path("/sys/fs/cgroup")
    try:
        limit = (base / "memory.max").read_text().strip()
        used = int((base / "memory.current").read_text())
        stat = dict(line.split() for line in (base / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    return max(0, int(limit) - used + int(stat.get("inactive_file", 0)))


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "CPU"


def _driver() -> str:
    """Version of the GPU driver, when the optional package that knows it is installed."""
    try:
        import pynvml
    except ImportError:
        return ""
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        try:
            version = nvml.nvmlSystemGetDriverVersion()
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError:
        return ""
    return version.decode() if isinstance(version, bytes) else str(version)
