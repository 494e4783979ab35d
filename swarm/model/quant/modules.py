"""Layers over matrices that stay as they are stored. They have no parameters: the matrix is no tensor of a model."""

from __future__ import annotations

import torch
from torch import nn

from swarm.model.quant.matrix import Matrix


class PackedLinear(nn.Module):
    """y = x W^T + b. x [..., in] of any floating dtype on the CPU; y of the same dtype."""

    def __init__(self, matrix: Matrix, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.matrix = matrix
        self.out_features, self.in_features = matrix.shape
        # A parameter of the usual name, so that it is loaded like any other.
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        bias = None if self.bias is None else self.bias.float()
        y = self.matrix.product(x.reshape(-1, self.in_features).float(), bias)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)


class PackedEmbedding(nn.Module):
    """Rows of the matrix by token id, as `dtype`. scale: what some models multiply their embeddings by."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype, scale: float | None = None) -> None:
        super().__init__()
        self.matrix, self.dtype = matrix, dtype
        self.scale = None if scale is None else torch.tensor(scale, device="cpu").to(dtype)
        self.num_embeddings, self.embedding_dim = matrix.shape

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [...] -> [..., embedding_dim]."""
        rows = self.matrix.rows(ids.reshape(-1)).to(self.dtype).reshape(*ids.shape, self.embedding_dim)
        return rows if self.scale is None else rows * self.scale
