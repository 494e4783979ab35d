"""Matrices of plain numbers for the kernels whose rows do not depend on each other.

torch's products add in an order that depends on how many rows there are, so a row's last bits change with its company.
These do not: an output is one chain of fused multiply-adds in the order of the columns (native/dense.h).
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import nn

from swarm.model.quant.formats import Format
from swarm.model.quant.matrix import PackedMatrix
from swarm.model.quant.modules import PackedEmbedding, PackedLinear, join_same_rows
from swarm.model.quant.native import Library

KERNEL = "chain-fma-v1"
"""Name of the arithmetic: what `Matrix.kernel` says."""
_FORMS = {torch.float32: Format("F32", 0, 1, 4), torch.bfloat16: Format("BF16", 30, 1, 2)}
SHARED_BYTES = 128 << 20
"""A head that shares the embedding's matrix gets a copy of its own up to this size; above it the embedding reads its
rows out of the head's."""


def dense_matrix(weight: torch.Tensor, lib: Library) -> PackedMatrix | None:
    """[out, in] on the CPU in panels, a copy; None for a dtype or an odd shape that has no kernel."""
    form = _FORMS.get(weight.dtype)
    size = 0 if form is None or weight.dim() != 2 else lib.packed_bytes(form.number, weight.shape[0], weight.shape[1])
    if form is None or not size:
        return None
    stored = weight.detach().contiguous()
    data = torch.empty(size, dtype=torch.uint8)
    lib.pack(form.number, stored.data_ptr(), None, (stored.shape[0], stored.shape[1]), data)
    return PackedMatrix(form, (stored.shape[0], stored.shape[1]), data, lib, KERNEL)


def in_panels(matrices: torch.Tensor, lib: Library) -> torch.Tensor | None:
    """[n, out, in] on the CPU as n matrices in panels, uint8 [n, bytes]; None for a dtype or an odd shape that has no
    kernel."""
    packed = [dense_matrix(matrix, lib) for matrix in matrices]
    found = [one.data for one in packed if one is not None]
    return torch.stack(found) if found and len(found) == len(packed) else None


def pack_linears(model: nn.Module, lib: Library) -> None:
    """Replace the linear layers below `model`, one by one, so that one matrix is there twice at most. What shares its
    matrix with a large embedding takes the embedding along, where that is a plain one."""
    from transformers.pytorch_utils import Conv1D  # only models of its classes come here: a requester has none

    tables = {id(m.weight): m for m in model.modules() if isinstance(m, nn.Embedding)}
    again: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in again:  # layers may share it
                parent._modules[name] = again[child]
                continue
            if isinstance(child, Conv1D):
                if (matrix := dense_matrix(child.weight.T, lib)) is not None:
                    parent._modules[name] = PackedLinear(matrix, child.bias)
                continue
            if type(child) is not nn.Linear:
                continue
            table = tables.get(id(child.weight))
            large = table is not None and child.weight.nbytes > SHARED_BYTES
            if large and not _plain(table):
                continue
            matrix = dense_matrix(child.weight, lib)
            if matrix is None:
                continue
            parent._modules[name] = again[child] = PackedLinear(matrix, child.bias)
            if large and table is not None:
                _replace(model, table, PackedEmbedding(matrix, child.weight.dtype, _scale(table)))
    join_same_rows(model)


def _plain(table: nn.Embedding | None) -> bool:
    return type(table) is nn.Embedding or _scale(table) is not None


def _scale(table: nn.Embedding | None) -> float | None:
    found = getattr(table, "scalar_embed_scale", None)
    return float(found) if isinstance(found, float | int) else None


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                parent._modules[name] = new
