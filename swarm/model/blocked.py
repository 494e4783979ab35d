"""Weights in the order in which the CPU's matrix kernel reads them.

A plain matrix product over a few rows spends most of its time bringing the weights into an order that its kernel can
stream. Done once, when the weights are loaded (oneDNN's blocked format), float32 products of 2 to 256 rows take less
than half the time and bfloat16 ones of up to 32 rows about two thirds (`python -m tests.bench.linear`).
"""

from __future__ import annotations

import contextlib
import ctypes
from weakref import WeakKeyDictionary

import torch
from torch import nn

from swarm.model.kernels import bound_kernels

FEW_ROWS = 8
"""Rows for which the order is chosen; it serves any number, and others were not faster."""
SHARED_BYTES = 128 << 20
"""A head that shares the embedding's matrix gets a copy of its own up to this size: the embedding stays as it is."""


class BlockedLinear(nn.Module):
    """y = x W^T + b like the linear layer that it is made from; x [..., in] in the weight's dtype on the CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.inference_mode(False), torch.no_grad():  # an opaque tensor made in inference mode has no kernels
            self._blocked = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), FEW_ROWS)
        self.bias = linear.bias

    @property
    def weight(self) -> torch.Tensor:
        """The matrix [out, in] in its usual order; a copy."""
        return self._blocked.to_dense()  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        return torch.ops.mkldnn._linear_pointwise(x, self._blocked, self.bias, "none", [], "")  # type: ignore[no-any-return]


def can_block(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch has the kernels for this device and dtype; tried, since it depends on the processor."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return False
    bound_kernels()
    try:
        BlockedLinear(nn.Linear(64, 64, dtype=dtype))(torch.zeros(1, 2, 64, dtype=dtype))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


def block_linears(model: nn.Module) -> None:
    """Replace the linear layers below `model` by blocked ones, one by one, so that one matrix is there twice at most.

    What shares its matrix with an embedding stays when the copy would be large.
    """
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    again: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in again:  # layers may share it
                parent._modules[name] = again[child]
                continue
            if type(child) is not nn.Linear or child.weight.dim() != 2:
                continue
            if id(child.weight) in shared and child.weight.nbytes > SHARED_BYTES:
                continue
            parent._modules[name] = again[child] = BlockedLinear(child)
    give_back()


def give_back() -> None:
    """Return freed memory to the system: glibc keeps what it once took for matrices of the usual size, as much again
    as the weights."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
