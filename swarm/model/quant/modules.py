"""Layers over matrices that stay as they are stored. They have no parameters: the matrix is no tensor of a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from swarm.model.quant.matrix import Matrix, PackedMatrix

_SAME_ROWS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that are asked with the same rows, in this order, by the names that transformers has."""


class PackedLinear(nn.Module):
    """y = x W^T + b. x [..., in] of any floating dtype where the matrix lies; y of the same dtype."""

    def __init__(self, matrix: Matrix, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.matrix = matrix
        self.out_features, self.in_features = matrix.shape
        # A parameter of the usual name, so that it is loaded like any other.
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._together: tuple[Together, int] | None = None
        self._wide: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        if self._together is not None:
            return self._together[0].product(x, self._together[1])
        rows = as_rows(x, self.in_features)
        return self.matrix.product(rows, self.wide_bias()).to(x.dtype).view(*x.shape[:-1], self.out_features)

    def alone(self) -> None:
        """From now on by itself, and so are the layers that are asked with the same rows."""
        if self._together is not None:
            self._together[0].part()

    @property
    def weight(self) -> torch.Tensor:
        """The matrix [out, in] as numbers: a copy, bfloat16 where it is stored so, else float32."""
        rows = self.matrix.rows(torch.arange(self.out_features))
        rows = rows.bfloat16() if self.matrix.form.name == "BF16" else rows
        setattr(rows, "swarm_weight", True)  # noqa: B010  (so that a product written out with it is known)
        return rows

    def wide_bias(self) -> torch.Tensor | None:
        """The bias as float32, made when it is first asked for: after it was loaded."""
        if self._wide is None and self.bias is not None:
            self._wide = self.bias.detach().float().contiguous()
        return self._wide


class Together:
    """Linear layers over the same rows (query, key and value; gate and up): one call multiplies by all of them.

    The first layer is asked first and does it; what it found for the others waits for them, as long as they come with
    the very tensor that it was asked with. A model that does not ask them all is computed layer by layer.
    """

    def __init__(self, layers: Sequence[PackedLinear], matrices: Sequence[PackedMatrix]) -> None:
        self._layers, self._matrices, self._lib = layers, matrices, matrices[0].lib
        self._asked: torch.Tensor | None = None
        self._waiting: dict[int, torch.Tensor] = {}

    def product(self, x: torch.Tensor, place: int) -> torch.Tensor:
        """The product of layer `place`."""
        if place == 0:
            if self._waiting:
                self.part()
            found = self._products(x, range(len(self._layers)))
            self._asked, self._waiting = x, dict(enumerate(found[1:], 1))
            return found[0]
        if x is self._asked and place in self._waiting:
            found_before = self._waiting.pop(place)
            if not self._waiting:
                self._asked = None
            return found_before
        return self._products(x, [place])[0]

    def part(self) -> None:
        """From now on each layer by itself."""
        self._asked, self._waiting = None, {}
        for layer in self._layers:
            layer._together = None

    def _products(self, x: torch.Tensor, places: Sequence[int]) -> list[torch.Tensor]:
        rows = as_rows(x, self._layers[0].in_features)
        operands = [self._matrices[i].operand(self._layers[i].wide_bias()) for i in places]
        shape = x.shape[:-1]
        return [y.to(x.dtype).view(*shape, y.shape[1]) for y in self._lib.products(operands, rows)]


def join(layers: Sequence[nn.Module]) -> None:
    """Let layers that multiply the same rows do so in one call, where kernels do. The order is that of the asking."""
    packed = [layer for layer in layers if isinstance(layer, PackedLinear)]
    matrices = [layer.matrix for layer in packed if isinstance(layer.matrix, PackedMatrix)]
    same = len({layer.in_features for layer in packed}) == 1
    if len(packed) < 2 or len(matrices) != len(packed) or len(packed) != len(layers) or not same:
        return
    together = Together(packed, matrices)
    for place, layer in enumerate(packed):
        layer._together = (together, place)


def join_same_rows(model: nn.Module) -> None:
    """`join` the layers of every module below `model` that are known to multiply the same rows."""
    for module in model.modules():
        for names in _SAME_ROWS:
            if all(name in module._modules for name in names):
                join([module.get_submodule(name) for name in names])


def as_rows(x: torch.Tensor, width: int) -> torch.Tensor:
    """[..., width] as contiguous rows [n, width] of a dtype that kernels take."""
    rows = x.reshape(-1, width).contiguous()
    return rows if rows.dtype in (torch.bfloat16, torch.float32) else rows.float()


class PackedEmbedding(nn.Module):
    """Rows of the matrix by token id, as `dtype`. scale: what some models multiply their embeddings by."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype, scale: float | None = None) -> None:
        super().__init__()
        self.matrix, self.dtype = matrix, dtype
        self.scale = None if scale is None else torch.tensor(scale, device="cpu").to(dtype)
        self.num_embeddings, self.embedding_dim = matrix.shape

    @property
    def weight(self) -> torch.Tensor:
        """No rows, for classes that ask their table which device it is on (Llama 4)."""
        return torch.empty(0, self.embedding_dim, dtype=self.dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [...] -> [..., embedding_dim]."""
        rows = self.matrix.rows(ids.reshape(-1)).to(self.dtype).reshape(*ids.shape, self.embedding_dim)
        return rows if self.scale is None else rows * self.scale
