"""In what precision a node computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from swarm.base.errors import UsageError

_NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto", "float32", "bfloat16" or "float16" to a dtype.

    Auto takes bfloat16 where the device multiplies it natively (GPUs since Ampere, CPUs with AVX512-BF16 or AMX),
    because elsewhere it is emulated and slower than float32. GPUs without it get float16, which they multiply natively
    and which takes half of float32's memory; it ends at 65504, and what a model makes beyond that is refused when it
    is seen.

    Raises UsageError for another name, and for float16 on a CPU, where no kernel of ours computes it.
    """
    if name == "auto":
        if computes_bfloat16(device):
            return torch.bfloat16
        return torch.float16 if device.type in ("cuda", "mps") else torch.float32
    if name not in _NAMES:
        raise UsageError(f"--dtype must be auto, float32, bfloat16 or float16, found {name}")
    if name == "float16" and device.type == "cpu":
        raise UsageError("--dtype float16 is for GPUs without bfloat16; on a CPU use auto, bfloat16 or float32")
    return _NAMES[name]


def common_dtype(name: str, devices: Sequence[torch.device]) -> torch.dtype:
    """`choose_dtype` for devices that share a block. Raises UsageError where they would choose differently."""
    found = {device: choose_dtype(name, device) for device in devices}
    if len(set(found.values())) > 1:
        each = ", ".join(f"{dtype_name(dtype)} on {device}" for device, dtype in found.items())
        raise UsageError(f"expected devices that compute in one precision, found {each}; name one with --dtype")
    return found[devices[0]]


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32" for torch.float32, and so on."""
    return str(dtype).removeprefix("torch.")


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has native bfloat16 arithmetic. Of AMD's (ROCm) torch says itself which have it; of Apple's all
    are taken as without, since the first ones are."""
    if device.type == "cuda":
        if torch.version.hip:
            with torch.cuda.device(device):
                return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return bool(torch.cuda.get_device_capability(device) >= (8, 0))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return False
