"""Layers of a made drafter in one call of the compiled kernels, over matrices as they are stored.

A step of the drafter's was four parts Python and torch's small operations for one part of reading weights: 6.5 ms for
eleven layers, where the kernels take as long for all thirty layers of the target, of four bits a weight. What is
computed is what `made_block` computes step by step, but that rows are rounded to bytes before a product, as stages do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import gguf
import numpy as np
import torch

from swarm.model.attention import JobPlan
from swarm.model.inorder import JOB_WORDS, call_words
from swarm.model.quant.formats import find_format
from swarm.model.quant.layer_words import LayerSizes, layer_words
from swarm.model.quant.matrix import PackedMatrix, hold
from swarm.model.quant.native import Library

BLOCK = 32
"""Weights that share a scale in a file's four bits, and in the kernels' eight."""
LANES = 32
"""Numbers of a head come in multiples of this where the kernels attend and turn."""
ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def packed_int8(codes: torch.Tensor, scales: torch.Tensor, name: str, lib: Library) -> PackedMatrix | None:
    """int8 [rows, columns] with a scale for each row, as the kernels' blocks of 32; None where they have no such shape.

    Scales become binary16: a product is off by 0.05% at most. Raises ModelError for one that is not finite in it.
    """
    rows, columns = codes.shape
    blocks = np.empty((rows, columns // BLOCK, 2 + BLOCK), np.uint8)
    with np.errstate(over="ignore"):
        halves = scales.float().numpy().astype("<f2").view(np.uint8).reshape(rows, 1, 2)
    blocks[:, :, :2] = halves
    blocks[:, :, 2:] = codes.contiguous().numpy().view(np.uint8).reshape(rows, -1, BLOCK)
    return _held(blocks, "Q8_0", (rows, columns), name, lib)


def packed_floats(weight: torch.Tensor, name: str, lib: Library) -> PackedMatrix | None:
    """[rows, columns] rounded to eight bits, a scale for each 32 of a row."""
    rows, columns = weight.shape
    wide = weight.float().reshape(rows * (columns // BLOCK), BLOCK)
    scales = (wide.abs().amax(1) / 127).half()
    codes = (wide / scales.float().clamp(min=1e-8)[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    blocks = np.empty((len(wide), 2 + BLOCK), np.uint8)
    blocks[:, :2] = scales.numpy().view(np.uint8).reshape(-1, 2)
    blocks[:, 2:] = codes.numpy().view(np.uint8)
    return _held(blocks, "Q8_0", (rows, columns), name, lib)


def packed_q4(stored: torch.Tensor, name: str, lib: Library) -> PackedMatrix | None:
    """uint8 [rows, bytes of a row] of GGUF's Q4_1, as `draft.four_bits` writes it."""
    rows, width = stored.shape
    columns = width // 20 * BLOCK
    return _held(stored.numpy(), "Q4_1", (rows, columns), name, lib)


def _held(blocks: np.ndarray, kind: str, shape: tuple[int, int], name: str, lib: Library) -> PackedMatrix | None:
    form = find_format(f"gguf:{kind}")
    assert form is not None and int(gguf.GGMLQuantizationType[kind]) == form.number
    found = hold(blocks.reshape(-1), form, shape, None, name, lib)
    return found if isinstance(found, PackedMatrix) else None


class PackedLayers:
    """All layers of a drafter.

    matrices: of each layer, by the names in `ORDER`; norms: of each, bfloat16: before attention and behind it; eps:
    theirs.
    """

    def __init__(
        self,
        sizes: LayerSizes,
        matrices: Sequence[Mapping[str, PackedMatrix]],
        norms: Sequence[Sequence[torch.Tensor]],
        eps: float,
        lib: Library,
    ) -> None:
        self._lib, self._kept = lib, (matrices, norms)  # the words point into these
        self._words = b"".join(
            layer_words((*pair, None, None), sizes, [(held[name], None) for name in ORDER], (eps, eps, 0.0, 0.0))
            for held, pair in zip(matrices, norms, strict=True)
        )
        self._calls = call_words(sizes.dim**-0.5) * len(matrices)
        self._layers = range(len(matrices))

    def __call__(self, rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, plan: JobPlan) -> torch.Tensor:
        """Rows [n, hidden] behind the last layer, of rows before the first; cos and sin [n, dim]. All bfloat16."""
        assert plan.order is not None, "rows are attended to in order"
        jobs = np.empty((len(self._layers), 1, JOB_WORDS), np.int64)
        jobs[:, 0] = plan.order.of_layers(self._layers, [None] * len(self._layers), plan.start)
        outs = [torch.empty_like(rows) for _ in self._layers]
        self._lib.layers_whole(self._words, rows.contiguous(), len(rows), cos, sin, self._calls, jobs, outs)
        return outs[-1]
