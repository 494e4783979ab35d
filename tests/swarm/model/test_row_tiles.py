"""The kernels for GPUs whose rows do not depend on each other: interpreted on a CPU, compiled for cards, and run on one
where there is one. Triton's interpreter is a matter of a whole process (`interpreted_tiles`)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from swarm.base.errors import ModelError
from swarm.model.block import Block, load_block
from swarm.model.exact import first_difference, why_not
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.fingerprint import fingerprint_of
from swarm.model.rows import Layout
from swarm.model.tiles.kernels import RowTiles, tiles_of
from swarm.model.tiles.sight import sight_of
from swarm.model.tiles.watch import InTiles
from tests.swarm.model.exact_rows import config_of
from tests.swarm.model.tiny import CPU, MemoryCheckpoint, drafted, random_model

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton"
)
ATTENTIONS = ("plain", "narrow", "one-each", "window", "chunks", "capped", "latent")
FAMILIES = ("llama", "qwen2", "gemma3", "gpt2", "mixtral", "gpt-oss")


def interpreted(*checks: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.swarm.model.interpreted_tiles", *checks],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [f"held {check}" for check in checks]


@needs_triton
def test_products_sums_and_attention_do_not_depend_on_company() -> None:
    interpreted("products", "sums", "packed", "attention-plain", "attention-narrow")


@needs_triton
@pytest.mark.soak
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_of_each_kind_adds_in_the_order_of_positions(name: str) -> None:
    interpreted(f"attention-{name}")


@needs_triton
@pytest.mark.soak
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_computed_as_on_a_gpu_says_that_its_rows_are_exact_and_they_are(family: str, kind: str) -> None:
    interpreted(f"block-{family}-{kind}")


def test_rows_whose_drafts_are_no_path_are_refused_by_name() -> None:
    layout = Layout(scratch=8, context=20)
    rows = drafted([0, 0], [-1, -1], [1, 2], 5, layout)
    rows.ancestors[1, 0] |= 2
    with pytest.raises(ModelError, match="two drafts at one position"):
        sight_of(rows, np.array([0, 5, 5, 0, 0, 0, 0, 0]), CPU)
    rows = drafted([0, 0], [-1, 0], [1, 2], 5, layout)
    with pytest.raises(ModelError, match="expected one between them"):
        sight_of(rows, np.array([0, 3, 6, 0, 0, 0, 0, 0]), CPU)


def test_what_torch_adds_up_is_named() -> None:
    class Slots:
        over_slots = as_they_lie = 0

    x = torch.randn(2, 3, 4)
    with InTiles(RowTiles(), Slots()) as watch:
        torch.cumsum(x, -1)
        torch.nn.functional.normalize(x)
        torch.arange(4).sum()  # whole numbers add up to the same in any order
        torch.relu(x).max(-1)
    assert watch.found == ["cumsum", "normalize"]
    slots = Slots()
    slots.as_they_lie = 1  # slots as they lie are in no order: torch's own
    with InTiles(RowTiles(), slots) as watch:
        assert torch.equal(torch.softmax(x, -1), x.softmax(-1))
    assert watch.found == ["softmax", "softmax"]


def test_a_device_without_kernels_is_told_so() -> None:
    found = tiles_of(torch.device("mps"), torch.float32)
    assert isinstance(found, str) and "mps" in found


@needs_triton
@pytest.mark.parametrize("kind", ["bf16", "fp32"])
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_cards_that_are_not_here(kind: str, capability: int) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from swarm.model.quant import triton_dense
    from swarm.model.tiles import slots, sums

    tile = {"M": triton_dense.ROWS, "N": triton_dense.OUTPUTS, "K": triton_dense.DEPTH}
    lanes = {"G": 4, "M": slots.LANES, "N": slots.CHUNK, "D": slots.DEPTH, "V": slots.VALUES}
    whole = {"prefix_at", "position_at", "scratch_at", "place_at"}
    given = [
        (triton_dense._product, {"BIAS": True, "WIDE": False, **tile}, {"bias_at": "*fp32"}),
        (sums._total, {"STEP": sums.STEP}, {"y_at": "*fp32"}),
        (
            slots._attend,
            {"SPAN": 1, "CAP": True, "SINKS": True, "WIDE": False, **lanes},
            {"sink_at": "*fp32", "bits_at": "*u8", "scale": "fp32", "cap": "fp32"} | dict.fromkeys(whole, "*i32"),
        ),
    ]
    for kernel, constants, named in given:
        signature = {
            name: named.get(name) or ("constexpr" if name in constants else f"*{kind}" if name[-3:] == "_at" else "i32")
            for name in kernel.arg_names
        }
        source = ASTSource(kernel, signature, constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
        assert compiled.asm["cubin"] and compiled.metadata.shared <= 96 << 10


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_on_a_gpu_is_exact_and_signs_one_fingerprint(family: str, kind: str) -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    checkpoint, dtype = MemoryCheckpoint(random_model(config_of(family))), getattr(torch, kind)

    def load(source: Checkpoint, first: int, last: int) -> Block:
        return load_block(source, first, last, device, dtype, exact_on_gpu=True)

    block = load(checkpoint, 0, 3)
    assert why_not(block) is None
    assert first_difference(block, 85) is None
    assert why_not(load_block(checkpoint, 0, 3, device, dtype)) is not None
    measured = [fingerprint_of(checkpoint.manifest, checkpoint.config, device, dtype, load=load) for _ in range(2)]
    assert measured[0] == measured[1] and measured[0].row_invariant
