"""Layers that keep their weights as stored: which those of a model are, and putting them in.

Linear layers, the embedding of token ids, and experts that transformers keeps in stacks; anything else (convolutions,
routers that multiply by themselves) is expanded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from swarm.model.quant.experts import PackedExperts, Stack, kernels_of
from swarm.model.quant.matrix import KERNEL, Matrix
from swarm.model.quant.modules import PackedEmbedding, PackedLinear, join_same_rows
from swarm.model.stacks import ExpertNames
from swarm.model.state import Packing
from swarm.model.weights_as import PACKED


def plan_packing(model: nn.Module, weights: str, device: torch.device) -> Packing:
    """What of a model (on the meta device) can stay as stored. On a GPU that is what has a kernel on the CPU, experts
    too: its panels are multiplied there."""
    if weights != "expanded" and device.type != "cpu":
        weights = "auto"
    if weights == "expanded":
        return Packing(experts=ExpertNames(model), expanded=True)
    names = {f"{name}.weight" for name, module in model.named_modules() if type(module) is nn.Linear}
    table = _name_of(model, _embedding(model))
    if table is not None:
        names.add(f"{table}.weight")
    return Packing(frozenset(names), weights == "stored", ExpertNames(model))


def share_head(model: nn.Module, packed: dict[str, Matrix]) -> bool:
    """Give the head the embedding's matrix in a model whose config shares them; whether it is held as stored."""
    table, head = _name_of(model, _embedding(model)), _name_of(model, _head(model))
    if table is not None and head is not None and (matrix := packed.get(f"{table}.weight")) is not None:
        packed[f"{head}.weight"] = matrix
        return True
    return False


def put_in(model: nn.Module, packed: Mapping[str, Matrix], dtype: torch.dtype) -> None:
    """Replace the layers of these weights by ones that multiply by the matrix."""
    for target, matrix in packed.items():
        path, _, name = target.removesuffix(".weight").rpartition(".")
        parent = model.get_submodule(path)
        old: Any = getattr(parent, name)
        if isinstance(old, nn.Embedding):
            parent._modules[name] = PackedEmbedding(matrix, dtype, getattr(old, "scalar_embed_scale", None))
        else:
            parent._modules[name] = PackedLinear(matrix, old.bias)
    join_same_rows(model)


def put_in_experts(model: nn.Module, stacks: Mapping[str, Stack]) -> None:
    """Replace the experts that any of these weights belong to."""
    modules: dict[str, dict[str, Stack]] = {}
    for target, stack in stacks.items():
        path, _, name = target.rpartition(".")
        modules.setdefault(path, {})[name] = stack
    for path, found in modules.items():
        parent, _, name = path.rpartition(".")
        model.get_submodule(parent)._modules[name] = PackedExperts(model.get_submodule(path), found)


def computes_in(model: nn.Module, dtype: str) -> str:
    """What a stage says that it computes in: the dtype of its rows, or "q8" when kernels round them to bytes."""
    kernels = {m.matrix.kernel for m in model.modules() if isinstance(m, PackedLinear)}
    kernels |= kernels_of(list(model.modules()))
    return PACKED if KERNEL in kernels else dtype


def _embedding(model: nn.Module) -> nn.Module | None:
    found = model.get_input_embeddings()  # type: ignore[operator]
    plain = type(found) is nn.Embedding or isinstance(getattr(found, "scalar_embed_scale", None), float | int)
    return found if plain else None


def _head(model: nn.Module) -> nn.Module | None:
    return model.get_output_embeddings()  # type: ignore[operator,no-any-return]


def _name_of(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((name for name, module in model.named_modules() if wanted is not None and module is wanted), None)
