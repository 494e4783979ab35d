"""What was read of a large tensor does not stay in memory while the rest of it is read."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from swarm.base.errors import ModelError
from swarm.model.files import weights
from swarm.model.files.manifest import Manifest, TensorEntry
from swarm.model.files.weights import FileCheckpoint, Place
from swarm.model.quant.native import library
from tests.swarm.model.test_packing import resident

EXPERTS, ROWS, COLUMNS = 12, 1536, 1024
STACK = "model.layers.0.mlp.experts.down_proj"
BYTES = EXPERTS * ROWS * COLUMNS // 32 * 34

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says what is in memory")


def checkpoint(folder: Path) -> FileCheckpoint:
    """One file of Q8_0 blocks, which is a stack of experts, a matrix, or plain numbers, by the name asked for."""
    blocks = np.random.default_rng(0).integers(0, 256, (BYTES // 34, 34), np.uint8)
    blocks[:, :2] = np.array([0.01], np.float16).view(np.uint8)
    path = folder / "blocks"
    path.write_bytes(blocks.tobytes())
    entries = (
        TensorEntry(STACK, (EXPERTS, ROWS, COLUMNS), "gguf:Q8_0", BYTES, "0"),
        TensorEntry("model.layers.0.mlp.up_proj.weight", (EXPERTS * ROWS, COLUMNS), "gguf:Q8_0", BYTES, "0"),
        TensorEntry("plain", (BYTES // 1024, 512), "BF16", BYTES, "0"),
    )
    manifest = Manifest("m", {"model_type": "qwen3_moe", "num_hidden_layers": 1}, entries)
    return FileCheckpoint(manifest, {entry.name: Place(path, 0) for entry in entries})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of a file in memory, whenever a part of it is let go of."""
    found: list[int] = []
    let_go = weights._Mapped.let_go

    def watched(self: weights._Mapped, length: int, before: int = 0) -> None:
        found.append(resident(str(self.path)))
        let_go(self, length, before)

    monkeypatch.setattr(weights._Mapped, "let_go", watched)
    return found


@pytest.mark.skipif(library() is None, reason="no kernels were built")
def test_a_stack_of_experts_that_is_held(tmp_path: Path, seen: list[int]) -> None:
    source = checkpoint(tmp_path)
    held = source.hold_stack(STACK, without_kernel=False)
    assert held is not None and len(held) == EXPERTS
    stored = np.fromfile(tmp_path / "blocks", np.uint8).reshape(EXPERTS * ROWS, -1)
    last = gguf.dequantize(stored[-ROWS:], gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(held[-1].rows(torch.arange(ROWS)).numpy(), last)
    assert len(seen) >= EXPERTS and 0 < max(seen) <= BYTES // 3


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "plain"])
def test_a_matrix_that_is_expanded_or_copied(name: str, tmp_path: Path, seen: list[int]) -> None:
    source = checkpoint(tmp_path)
    values = source.read(name, torch.bfloat16)
    stored = np.fromfile(tmp_path / "blocks", np.uint8)
    if name == "plain":
        assert torch.equal(values.view(torch.int16).flatten(), torch.from_numpy(stored.view(np.int16)))
    else:
        wanted = gguf.dequantize(stored.reshape(EXPERTS * ROWS, -1)[-100:], gguf.GGMLQuantizationType.Q8_0)
        assert torch.equal(values[-100:], torch.from_numpy(wanted).bfloat16())
    assert len(seen) > 2 and 0 < max(seen) <= BYTES * 2 // 3


def test_a_damaged_last_part_is_refused_by_name(tmp_path: Path) -> None:
    source = checkpoint(tmp_path)
    with (tmp_path / "blocks").open("r+b") as file:
        file.seek(BYTES - 34)
        file.write(np.array([np.inf], np.float16).tobytes())
    with pytest.raises(ModelError, match=r"up_proj.weight holds values that are not finite"):
        source.read("model.layers.0.mlp.up_proj.weight", torch.bfloat16)
