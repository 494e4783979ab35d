"""Whether to capture: what a model's forward reads on the host, and what became of the captures before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from swarm.model.gpu import Gpu, out_of_memory
from swarm.model.quant.experts import PackedExperts

FIRST_PAUSE_S = 30.0
LONGEST_PAUSE_S = 600.0
MOST_REFUSALS = 3
"""Captures in a row that fail for another reason than memory before none is tried any more."""


@dataclass
class CaptureTrust:
    """Whether to try a capture now. Memory comes back, so what failed for it is tried again, later each time; a model
    that cannot be captured fails every time."""

    failures: int = 0
    refusals: int = 0
    until: float = 0.0

    def may(self, now: float) -> bool:
        return now >= self.until

    def worked(self) -> None:
        self.failures = self.refusals = 0

    def failed(self, now: float, error: Exception) -> None:
        self.refusals += not out_of_memory(error)
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**self.failures)
        self.failures += 1
        self.until = float("inf") if self.refusals >= MOST_REFUSALS else now + pause

    @property
    def given_up(self) -> bool:
        return self.refusals >= MOST_REFUSALS


GROUPED_ON_DEVICE = (9, 10)
"""Major compute capabilities on which torch's grouped product of bfloat16 takes its offsets on the device; elsewhere it
copies them to the host and multiplies group by group (aten/src/ATen/native/cuda/GroupedBlas.cpp)."""


def can_capture(model: nn.Module, gpu: Gpu, dtype: torch.dtype) -> bool:
    """Whether there are graphs, and nothing is known of the model that reads on the host what experts are chosen."""
    if not gpu.cuda.has_graphs:
        return False
    for module in model.modules():
        if isinstance(module, PackedExperts):  # many rows are brought to their experts one by one
            return False
        if not hasattr(module, "_apply_gate"):  # transformers' mark of a class with stacked experts
            continue
        how = getattr(getattr(module, "config", None), "_experts_implementation", None)
        grouped = how == "grouped_mm" and dtype == torch.bfloat16
        if how != "batched_mm" and not (grouped and gpu.cuda.capability(gpu.device)[0] in GROUPED_ON_DEVICE):
            return False
    return True
