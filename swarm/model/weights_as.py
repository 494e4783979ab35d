"""In which form weights are held: what a user may ask for, and what stages say that they compute in."""

from __future__ import annotations

import torch

from swarm.base.errors import UsageError
from swarm.model.quant.native import library

PACKED = "q8"
"""What stages say they compute in when kernels multiply weights as stored by rows rounded to bytes (`KERNEL`)."""
WEIGHTS = ("auto", "stored", "expanded")


def choose_weights(weights: str, dtype: str, device: torch.device) -> str:
    """ "stored", "auto" or "expanded" for `load_block`, from what a user asked for.

    Auto keeps stored what a kernel here multiplies. It expands on a GPU, where its kernels were not measured yet, and
    where float32 was asked for by name: rounding rows to bytes would not give what is wanted then.

    Raises UsageError for what cannot be had.
    """
    if weights not in WEIGHTS:
        raise UsageError(f"--weights-as must be auto, stored or expanded, found {weights}")
    if weights == "stored" and device.type != "cpu" and library() is None:
        raise UsageError(
            "weights are brought into panels by kernels that were not built here; install wanswarm again where there "
            "is a C++ compiler, or use --weights-as auto"
        )
    if weights == "auto" and (device.type != "cpu" or dtype == "float32" or library() is None):
        return "expanded"
    return weights
