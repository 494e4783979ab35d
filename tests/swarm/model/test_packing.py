"""A model whose matrices stay as they are stored: close to the unpacked one, and the same bits however it is cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swarm.base.errors import UsageError
from swarm.discovery.model_shape import held_bytes, model_shape
from swarm.model.block import Block, load_block
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.files.weights import FileCheckpoint
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.quant import matrix as matrix_module
from swarm.model.quant.matrix import PackedMatrix, dense
from swarm.model.quant.modules import PackedEmbedding, PackedLinear
from swarm.model.quant.native import Library, library
from swarm.model.rows import Layout, no_commits
from swarm.model.weights_as import PACKED, choose_weights
from swarm.ring.certain_rows import certain_rows
from tests.bench.weights import agreement

CPU = torch.device("cpu")
TOKENS = [504, 2644, 282, 4649, 314, 3575, 28, 284, 260, 2644, 282, 5790, 314]

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return ModelStore(tmp_path_factory.mktemp("models")).open(DEFAULT_MODEL, None)


@pytest.fixture(scope="module")
def packed(checkpoint: Checkpoint) -> Iterator[Block]:
    yield load_block(checkpoint, 0, checkpoint.manifest.n_layers, CPU, torch.float32, weights="auto")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says what of a file is in memory")
def test_what_was_read_of_a_large_matrix_does_not_stay_in_memory(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.embed_tokens.weight"
    assert isinstance(checkpoint, FileCheckpoint)
    entry, path = checkpoint.manifest.entries[name], str(checkpoint.places[name].path)
    pack, seen = Library.pack, []

    def watched(*given: Any) -> None:
        pack(*given)
        seen.append(resident(path))

    whole = checkpoint.hold(name, without_kernel=False)
    monkeypatch.setattr(Library, "pack", watched)
    monkeypatch.setattr(matrix_module, "PART_BYTES", 1 << 20)
    in_parts = checkpoint.hold(name, without_kernel=False)
    assert isinstance(whole, PackedMatrix) and isinstance(in_parts, PackedMatrix)
    assert torch.equal(whole.data, in_parts.data)
    assert len(seen) >= entry.nbytes >> 20 > 8
    assert 0 < max(seen) <= entry.nbytes // 3  # a part, and what the system keeps around it: up to 2 MiB on either side


def resident(path: str) -> int:
    """Bytes of a file that this process has mapped and in memory."""
    found, mine = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line[0].isdigit() or line[0] in "abcdef":
            mine = line.endswith(path)
        elif mine and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found


def through(blocks: list[Block], sizes: list[int]) -> torch.Tensor:
    """Logits of every token, in frames of these many rows, through blocks one after the other."""
    layout = Layout(0, 64)
    opened = [KVPool(block, 1 << 40).open(layout, block.first, block.last) for block in blocks]
    found, at = [], 0
    for size in sizes:
        rows = certain_rows(layout, at, TOKENS[at : at + size])
        rows = dataclasses.replace(rows, want=np.ones(size, bool))
        hidden = None
        for block, kv in zip(blocks, opened, strict=True):
            hidden = block.forward([Job(kv, no_commits(), rows, hidden)])[0]
        assert hidden is not None
        found.append(hidden)
        at += size
    for kv in opened:
        kv.close()
    return torch.cat(found)


def test_it_answers_like_the_unpacked_model(checkpoint: Checkpoint, packed: Block) -> None:
    n = checkpoint.manifest.n_layers
    want = through([load_block(checkpoint, 0, n, CPU, torch.float32)], [len(TOKENS)])
    got = through([packed], [len(TOKENS)])
    apart = (got - want).norm(dim=1) / want.norm(dim=1)
    assert apart.median() < 0.07 and apart.max() < 0.2  # thirty layers of rows rounded to bytes
    for mine, exact in zip(got, want, strict=True):  # the same token wherever the two best are not nearly as good
        best = exact.topk(2).values
        if best[0] - best[1] > 4 * (mine - exact).abs().mean():
            assert mine.argmax() == exact.argmax()


def test_thirty_two_greedy_tokens_are_those_of_the_unpacked_model(checkpoint: Checkpoint) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # many small products: threads would mostly wait for each other
    try:
        found = agreement(checkpoint, TOKENS)
    finally:
        torch.set_num_threads(before)
    assert found.equal + found.ties == found.tokens == 32 and found.equal >= 29


def test_a_cut_model_gives_the_same_bits_as_the_whole(checkpoint: Checkpoint, packed: Block) -> None:
    n = checkpoint.manifest.n_layers
    whole = through([packed], [8, 1, 1, 3])
    views = [packed.view(0, 7), packed.view(7, 20), packed.view(20, n)]
    assert torch.equal(through(views, [8, 1, 1, 3]), whole)
    loaded = [load_block(checkpoint, a, b, CPU, torch.float32, weights="auto") for a, b in ((0, 10), (10, n))]
    assert torch.equal(through(loaded, [8, 1, 1, 3]), whole)


def test_matrices_are_those_of_the_unpacked_model_and_the_head_shares_the_embedding(
    checkpoint: Checkpoint, packed: Block
) -> None:
    assert packed.computes_in == PACKED
    model = packed.loaded.model
    table, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    assert isinstance(table, PackedEmbedding) and isinstance(head, PackedLinear) and table.matrix is head.matrix
    for name in ("layers.3.self_attn.q_proj", "layers.3.self_attn.k_proj", "layers.29.mlp.down_proj"):
        layer = model.get_submodule(f"model.{name}")
        assert isinstance(layer, PackedLinear)
        assert torch.equal(dense(layer.matrix, torch.float32), checkpoint.read(f"model.{name}.weight", torch.float32))


def test_a_narrow_head_scores_the_rows_that_were_asked_for(checkpoint: Checkpoint) -> None:
    n = checkpoint.manifest.n_layers
    block = load_block(checkpoint, n - 1, n, CPU, torch.float32, weights="auto")
    tokens = torch.tensor([5, 48_000, 17])
    block.narrow_head(tokens)
    head = block.loaded.model.get_output_embeddings()  # type: ignore[operator]
    assert torch.equal(head.weight, checkpoint.read("model.embed_tokens.weight", torch.float32)[tokens])


def test_the_planner_counts_the_bytes_that_are_held(checkpoint: Checkpoint, packed: Block) -> None:
    manifest = checkpoint.manifest
    shape = model_shape(manifest, torch.float32, "auto")
    layer = packed.view(4, 5).loaded.model.get_submodule("model.layers.0")
    matrices = sum(m.matrix.nbytes for m in layer.modules() if isinstance(m, PackedLinear))
    held = matrices + sum(p.nbytes for p in layer.parameters())
    assert shape.layer_bytes[4] == held
    stored = sum(entry.nbytes for entry in manifest.tensors)
    assert sum(held_bytes(e, manifest.config, torch.float32, "auto") for e in manifest.tensors) <= 1.10 * stored
    assert model_shape(manifest, torch.float32).layer_bytes[4] > 5 * held


def test_auto_expands_where_float32_or_a_gpu_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_weights("auto", "auto", CPU) == "auto"
    assert choose_weights("auto", "float32", CPU) == "expanded"
    assert choose_weights("stored", "float32", CPU) == "stored"
    assert choose_weights("auto", "auto", torch.device("cuda")) == "expanded"
    assert choose_weights("stored", "auto", torch.device("cuda")) == "stored"
    with pytest.raises(UsageError, match="found packed"):
        choose_weights("packed", "auto", CPU)
    monkeypatch.setattr("swarm.model.weights_as.library", lambda: None)
    with pytest.raises(UsageError, match="brought into panels by kernels that were not built here"):
        choose_weights("stored", "auto", torch.device("cuda"))
