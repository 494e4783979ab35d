"""Four bits: a grid that loses nothing of what lay on it, bytes as GGUF has them, rounding to the nearest."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from draft.four_bits import BLOCK_BYTES, Grid, unpacked


def test_what_is_stored_is_q4_1_to_the_gguf_library() -> None:
    torch.manual_seed(1)
    weight = torch.randn(6, 96)
    grid = Grid.of(weight)
    stored = grid.stored(weight)
    assert stored.dtype == torch.uint8 and stored.shape == (6, 3 * BLOCK_BYTES)
    theirs = gguf.dequantize(stored.numpy(), gguf.GGMLQuantizationType.Q4_1)
    assert np.array_equal(unpacked(stored).numpy(), theirs.reshape(6, 96))
    assert torch.allclose(unpacked(stored), grid.nearest(weight), atol=1e-6)


def test_rounding_is_to_the_nearest_place_of_the_block() -> None:
    torch.manual_seed(2)
    weight = torch.randn(4, 64) * torch.tensor([1e-3, 1.0, 30.0, 0.0])[:, None]
    off = (Grid.of(weight).nearest(weight) - weight).abs().view(4, 2, 32)
    span = (weight.view(4, 2, 32).amax(-1) - weight.view(4, 2, 32).amin(-1))[..., None]
    assert bool((off <= span / 15 * 0.52 + 1e-6).all())


def test_a_layer_that_came_in_four_bits_starts_without_loss() -> None:
    rng = np.random.default_rng(3)
    wide = rng.normal(size=(8, 64)).astype(np.float32)
    blocks = gguf.quantize(wide, gguf.GGMLQuantizationType.Q4_1)
    theirs = torch.from_numpy(gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_1).reshape(8, 64).copy())
    grid = Grid.of(theirs)
    assert torch.equal(grid.codes(theirs), grid.codes(grid.nearest(theirs)))
    assert float((grid.nearest(theirs) - theirs).abs().max()) < 2e-3 * float(theirs.abs().max())


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks of 32, found 40"):
        Grid.of(torch.zeros(2, 40))
