"""Weights in the order in which the CPU's matrix kernel reads them.

A plain matrix product over a few rows spends most of its time bringing the weights into an order that its kernel can
stream. Done once, when the weights are loaded (oneDNN's blocked format), float32 products of 2 to 256 rows take less
than half the time and bfloat16 ones of up to 32 rows about two thirds (`python -m tests.bench.linear`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os

import torch
from torch import nn

FEW_ROWS = 8
"""Rows for which the order is chosen; it serves any number, and others were not faster."""
SHARED_BYTES = 128 << 20
"""A head that shares the embedding's matrix gets a copy of its own up to this size: the embedding stays as it is."""

KERNELS_KEPT = 128
"""Prepared kernels that torch and oneDNN keep, one for each matrix shape and number of rows. They keep 1,024 by
themselves, about 0.6 MB each, so that a node grows by a gigabyte as prompts of all lengths come by. 128 are more than
the row counts of decoding times the shapes of a layer; to prepare one again takes 0.6 ms, once for all layers."""


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
    _bound_kernels()
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
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear or child.weight.dim() != 2:
                continue
            if id(child.weight) in shared and child.weight.nbytes > SHARED_BYTES:
                continue
            parent._modules[name] = BlockedLinear(child)
    _give_back()


def _bound_kernels() -> None:
    """Keep fewer prepared kernels. Both libraries ask the environment, once, when the first kernel is prepared, and
    have no other way to be told; whoever set it before knows better."""
    for cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(cache, str(KERNELS_KEPT))


def _give_back() -> None:
    """Return freed memory to the system: glibc keeps what it once took for matrices of the usual size, as much again
    as the weights."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
