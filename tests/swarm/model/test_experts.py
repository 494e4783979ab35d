"""Experts that stay as they are stored: the bits of their matrices, close to the unpacked ones, only those touched that
rows were routed to, from every file that keeps them."""

from __future__ import annotations

import importlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from swarm.base.errors import ModelError
from swarm.discovery.model_shape import model_shape
from swarm.model.block import Block, load_block
from swarm.model.files.checkpoint import Checkpoint, open_model
from swarm.model.files.packable import OWN_EXPERTS
from swarm.model.files.store import ModelStore
from swarm.model.job import Job
from swarm.model.kvcache import KVPool
from swarm.model.quant.encoding import MovedColumns
from swarm.model.quant.experts import PackedExperts, Stack, route
from swarm.model.quant.matrix import Matrix, PackedMatrix, dense, hold
from swarm.model.quant.modules import PackedLinear
from swarm.model.quant.native import Library, library
from swarm.model.rows import Layout, no_commits
from swarm.model.stacks import ExpertNames, ExpertPlace, gather
from swarm.model.weights_as import PACKED
from tests.swarm.model import encoded_files as files
from tests.swarm.model import fenced_experts
from tests.swarm.model.expert_files import mixture, save_gguf, save_gpt_oss, save_one_by_one
from tests.swarm.model.test_encoded import AWQ, BLOCK, ct, gptq
from tests.swarm.model.test_quant import KERNELS, blocks, form_of
from tests.swarm.model.tiny import CPU, certain

TEXT = list(range(3, 23))
LAYOUT = Layout(scratch=8, context=64)
KEYS = {"expert_count": 8, "expert_used_count": 3, "expert_feed_forward_length": 32}
CHANNEL = ct("pack-quantized", type="int", num_bits=8, strategy="channel", symmetric=True)

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store", endpoint="http://127.0.0.1:9", hub_cache=tmp_path / "cache")


@pytest.fixture(scope="module")
def lib() -> Library:
    found = library()
    assert found is not None
    return found


def logits(checkpoint: Checkpoint, cuts: tuple[int, ...], weights: str) -> tuple[torch.Tensor, list[Block]]:
    """Logits of every row, computed by blocks that meet at `cuts`."""
    hidden, made = None, []
    for first, last in zip(cuts, cuts[1:], strict=False):
        block = load_block(checkpoint, first, last, CPU, torch.float32, blocked=False, weights=weights)
        kv = KVPool(block, 1 << 30).open(LAYOUT, first, last)
        (hidden,) = block.forward([Job(kv, no_commits(), certain(TEXT, 0, LAYOUT), hidden)])
        made.append(block)
    assert hidden is not None
    return hidden, made


def experts_of(block: Block) -> list[nn.Module]:
    return [m for name, m in block.loaded.model.named_modules() if name.endswith(".experts")]


@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=6)
@given(
    rows=st.integers(0, 19), chosen=st.integers(1, 3), experts=st.integers(3, 6), out=st.integers(1, 40),
    parts=st.integers(1, 2), with_bias=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_stack_multiplies_as_its_matrices_do(
    name: str, lib: Library, rows: int, chosen: int, experts: int, out: int, parts: int, with_bias: bool, seed: int
) -> None:
    form, source = form_of(name), torch.Generator().manual_seed(seed)
    stored = [[blocks(form, out, 256, 99 * seed + 9 * p + e) for e in range(experts)] for p in range(parts)]
    stack = Stack(tuple(tuple(hold(s, form, (out, 256), None, "m", lib) for s in part) for part in stored))
    assert (stack.experts, stack.out_features, stack.in_features) == (experts, parts * out, 256)
    bias = torch.randn(experts, parts * out, generator=source) if with_bias else None
    routes = torch.rand(rows, experts, generator=source).topk(chosen).indices
    routed = route(routes, experts)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(rows, 256, generator=source).to(dtype)
        found = stack.product(x, routed, bias, paired=False)
        assert torch.equal(found, stack.product(x[torch.from_numpy(routed.rows)], routed, bias, paired=True))
        for row, own in enumerate(routes.tolist()):
            for place, expert in zip(routed.place[row].tolist(), own, strict=True):
                each = [
                    part[expert].product(
                        x[row : row + 1], None if bias is None else bias[expert, p * out : (p + 1) * out].contiguous()
                    )
                    for p, part in enumerate(stack.parts)
                ]
                assert torch.equal(found[place], torch.cat(each, 1)[0])


def test_experts_that_are_not_there_are_refused() -> None:
    for wanted in ([[0, 8]], [[-1, 2]]):
        with pytest.raises(ValueError, match="of 8"):
            route(torch.tensor(wanted), 8)


def qwen(path: Path) -> Path:
    return save_gguf(path / "m.gguf", mixture("qwen3_moe"), "qwen3moe", "MXFP4", KEYS, down="Q5_1")


def encoded(family: str, write: files.Writer, stated: dict[str, Any]) -> Callable[[Path], Path]:
    return lambda path: save_one_by_one(path / "m", mixture(family), write, stated)


def stacked(family: str, arch: str, kind: str, keys: dict[str, Any], **changes: Any) -> Callable[[Path], Path]:
    own = {**KEYS, "expert_used_count": 2, **keys}
    return lambda path: save_gguf(path / "m.gguf", mixture(family, **changes), arch, kind, own)


LATENT = {
    "attention.q_lora_rank": 32, "attention.kv_lora_rank": 32, "attention.key_length": 40, "attention.value_length": 32,
    "attention.key_length_mla": 24, "attention.value_length_mla": 16, "attention.head_count_kv": 1,
    "rope.dimension_count": 8, "leading_dense_block_count": 1, "expert_shared_count": 1, "expert_gating_func": 2,
    "expert_group_count": 2, "expert_group_used_count": 1, "expert_weights_norm": True, "expert_weights_scale": 2.5,
}  # fmt: skip

FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "qwen3-moe, a GGUF": (qwen, "MXFP4"),
    "gpt-oss, a GGUF": (stacked("gpt_oss", "gpt-oss", "MXFP4", {"attention.sliding_window": 7}), "MXFP4"),
    "mixtral, a GGUF": (stacked("mixtral", "llama", "Q5_1", {"expert_feed_forward_length": 96}), "Q5_1"),
    "deepseek, a GGUF": (stacked("deepseek_v3", "deepseek2", "Q8_0", LATENT), "Q8_0"),
    "gpt-oss, MXFP4 in stacks": (lambda path: save_gpt_oss(path / "m", mixture("gpt_oss")), "MXFP4"),
    "mixtral, GPTQ with moved columns": (
        encoded("mixtral", files.gptq(sym=False, desc_act=True), gptq(sym=False, desc_act=True)), "Q5_0",
    ),
    "lfm2-moe, AWQ": (encoded("lfm2_moe", files.awq(), AWQ), "Q5_0"),
    "deepseek, int8 of compressed-tensors": (encoded("deepseek_v3", files.packed(8, 0), CHANNEL), "Q8_0"),
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_experts_of_every_file_are_those_of_the_unpacked_model(file: str, tmp_path: Path, store: ModelStore) -> None:
    """The same numbers, products close to theirs, the same bits however the model is cut and whoever shares a pass, and
    the bytes that the planner counts."""
    write, form = FILES[file]
    checkpoint = open_model(str(write(tmp_path)), store)
    _, (wide,) = logits(checkpoint, (0, 3), "expanded")
    whole, (block,) = logits(checkpoint, (0, 3), "auto")
    assert block.computes_in == PACKED and wide.computes_in == "float32"
    pairs = [(a, b) for a, b in zip(experts_of(block), experts_of(wide), strict=True)]
    assert len(pairs) >= 2
    source = torch.Generator().manual_seed(0)
    for mine, theirs in pairs:
        assert isinstance(mine, PackedExperts) and not isinstance(theirs, PackedExperts)
        for name, stack in mine.stacks.items():
            matrices = [matrix for part in stack.parts for matrix in part]
            assert all(isinstance(m, PackedMatrix | MovedColumns) for m in matrices)
            assert form in {m.form.name for m in matrices} or name == "down_proj"
            weight = getattr(theirs, name)
            for expert in range(8):
                parts = [dense(part[expert], torch.float32) for part in stack.parts]
                own = torch.stack(parts, 1).flatten(0, 1) if stack.alternate else torch.cat(parts)
                assert torch.equal(own.T if theirs.is_transposed else own, weight[expert])
        x = torch.randn(33, stack_width(mine), generator=source)
        routes, shares = torch.rand(33, 8, generator=source).topk(2).indices, torch.rand(33, 2, generator=source)
        with torch.inference_mode():
            found, exact = mine(x, routes, shares), theirs(x, routes, shares)
            near(found, exact)
            for row in range(0, 33, 8):
                assert torch.equal(mine(x[row : row + 1], routes[row : row + 1], shares[row : row + 1])[0], found[row])
    for cuts in ((0, 1, 3), (0, 1, 2, 3)):
        assert torch.equal(logits(checkpoint, cuts, "auto")[0], whole)
    for weights, loaded in (("auto", block), ("expanded", wide)):
        planned = model_shape(checkpoint.manifest, torch.float32, weights).layer_bytes
        assert sum(planned) == pytest.approx(sum(held(loaded, i) for i in range(3)), rel=0.05)


def near(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Two products of rows rounded to bytes; the bound of one is held in `test_quant`."""
    apart = (found - exact).norm(dim=1) / exact.norm(dim=1)
    assert apart.median() < 0.015 and apart.max() < 0.1


def stack_width(experts: PackedExperts) -> int:
    return experts.stacks[experts.first].in_features


def held(block: Block, layer: int) -> int:
    """Bytes of a layer, but for the order of moved columns: nothing in real widths, much in these."""
    modules = list(block.loaded.model.get_submodule(f"model.layers.{layer}").modules())
    matrices: list[Matrix] = [m.matrix for m in modules if isinstance(m, PackedLinear)]
    stacks = [s for m in modules if isinstance(m, PackedExperts) for s in m.stacks.values()]
    matrices += [matrix for stack in stacks for part in stack.parts for matrix in part]
    moved = sum(m.columns.nbytes for m in matrices if isinstance(m, MovedColumns))
    plain = sum(p.nbytes for m in modules for p in m.parameters(recurse=False))
    return sum(m.nbytes for m in matrices) + plain - moved


def test_what_has_no_kernel_is_expanded_unless_it_is_to_be_stored(tmp_path: Path, store: ModelStore) -> None:
    model = mixture("glm4_moe")
    path = save_one_by_one(tmp_path / "m", model, files.fp8(32, 48, "weight_scale_inv"), BLOCK)
    checkpoint = open_model(str(path), store)
    wide, (expanded,) = logits(checkpoint, (0, 3), "expanded")
    same, (auto,) = logits(checkpoint, (0, 3), "auto")
    assert torch.equal(same, wide) and not any(isinstance(m, PackedExperts) for m in experts_of(auto))
    close, (stored,) = logits(checkpoint, (0, 3), "stored")
    assert all(isinstance(m, PackedExperts) for m in experts_of(stored))
    torch.testing.assert_close(close, wide, rtol=0, atol=1e-3)
    for weights, block in (("stored", stored), ("auto", expanded)):
        planned = model_shape(checkpoint.manifest, torch.float32, weights).layer_bytes
        assert sum(planned) == pytest.approx(sum(held(block, i) for i in range(3)), rel=0.05)


def test_one_projection_may_stay_while_the_other_is_expanded(tmp_path: Path, store: ModelStore) -> None:
    model = mixture("qwen3_moe", moe_intermediate_size=256)
    keys = {**KEYS, "expert_feed_forward_length": 256}
    path = save_gguf(tmp_path / "m.gguf", model, "qwen3moe", "Q4_0", keys, down="IQ2_S")
    checkpoint = open_model(str(path), store)
    _, (wide,) = logits(checkpoint, (0, 3), "expanded")
    for weights, stacks in (("auto", {"gate_up_proj"}), ("stored", {"gate_up_proj", "down_proj"})):
        _, (block,) = logits(checkpoint, (0, 3), weights)
        for mine, theirs in zip(experts_of(block), experts_of(wide), strict=True):
            assert isinstance(mine, PackedExperts) and set(mine.stacks) == stacks
            x, routes, shares = torch.randn(9, 64), torch.rand(9, 8).topk(3).indices, torch.rand(9, 3)
            with torch.inference_mode():
                found, exact = mine(x, routes, shares), theirs(x, routes, shares)
            near(found, exact)


NAMES = {
    "qwen3_moe": ("model.layers.1.mlp.experts.{}.{}_proj.weight", ("gate", "up", "down"), "mlp.experts"),
    "mixtral": ("model.layers.1.block_sparse_moe.experts.{}.w{}.weight", (1, 3, 2), "mlp.experts"),
    "lfm2_moe": ("model.layers.1.feed_forward.experts.{}.w{}.weight", (1, 3, 2), "feed_forward.experts"),
    "deepseek_v3": ("model.layers.1.mlp.experts.{}.{}_proj.weight", ("gate", "up", "down"), "mlp.experts"),
    "glm4_moe": ("model.layers.1.mlp.experts.{}.{}_proj.weight", ("gate", "up", "down"), "mlp.experts"),
}


@pytest.mark.parametrize("family", NAMES)
def test_stored_names_say_whose_matrix_they_are(family: str) -> None:
    pattern, kinds, module = NAMES[family]
    names = ExpertNames(mixture(family))
    joined, down = f"model.layers.1.{module}.gate_up_proj", f"model.layers.1.{module}.down_proj"
    assert names.shapes[joined][0] == 8 and names.shapes[joined][1] == 2 * names.shapes[down][2]
    for part, (kind, target) in enumerate(zip(kinds, (joined, joined, down), strict=True)):
        assert names.place(pattern.format(7, kind)) == ExpertPlace(target, part % 2, 7)
    for other in ("model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.shared_experts.up_proj.weight"):
        assert names.place(other) is None
    found, others = gather([("a", pattern.format(2, kinds[0])), ("b", "model.norm.weight"), ("c", joined)], names)
    assert others == [("b", "model.norm.weight")]
    assert found[joined].pieces == {0: {2: "a"}} and found[joined].whole == "c"


@pytest.mark.parametrize("change", ["lacks one", "has one of another shape"])
def test_experts_that_do_not_add_up_are_refused_by_name(change: str, tmp_path: Path, store: ModelStore) -> None:
    wanted = r"expert\.7\..* of model\.layers\.1\.mlp\.experts\.\w+ is not there"
    wanted = wanted if change == "lacks one" else r"experts\.0\.w2\.weight has shape \[64, 32\]"

    def write(w: Any, rng: np.random.Generator) -> Any:
        return files.packed()(w[:, :32] if change.startswith("has") and w.shape == (64, 96) else w, rng)

    model, stated = mixture("mixtral"), ct("pack-quantized", type="int", num_bits=4, strategy="group", group_size=32)
    path = save_one_by_one(tmp_path / "m", model, write, stated)
    if change == "lacks one":
        from safetensors.torch import load_file, save_file

        tensors = load_file(path / "model.safetensors")
        kept = {name: t for name, t in tensors.items() if "layers.1.block_sparse_moe.experts.7." not in name}
        assert len(kept) < len(tensors)
        save_file(kept, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=wanted):
        load_block(open_model(str(path), store), 0, 3, CPU, torch.float32, weights="auto")


def test_an_exponent_that_is_no_number_is_refused_by_name(tmp_path: Path, store: ModelStore) -> None:
    bad = "model.layers.1.mlp.experts.down_proj"
    checkpoint = open_model(str(save_gpt_oss(tmp_path / "m", mixture("gpt_oss"), bad)), store)
    for weights in ("auto", "expanded"):
        load_block(checkpoint, 0, 1, CPU, torch.float32, weights=weights)
        with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts\.down_proj .*not finite"):
            load_block(checkpoint, 1, 2, CPU, torch.float32, weights=weights)
    stored = blocks(form_of("MXFP4"), 16, 64)
    stored[7, 17] = 255
    with pytest.raises(ModelError, match=r"blk\.7 holds values that are not finite"):
        hold(stored, form_of("MXFP4"), (16, 64), None, "blk.7", library())


def test_types_with_experts_of_their_own_are_those_that_the_planner_knows() -> None:
    """What the loader sees in a class, the planner knows by its type."""
    for module, name, packs in (
        ("dbrx", "DbrxExperts", False), ("llama4", "Llama4TextExperts", False),
        ("longcat_flash", "LongcatFlashExperts", False), ("qwen3_moe", "Qwen3MoeExperts", True),
        ("gpt_oss", "GptOssExperts", True),
    ):  # fmt: skip
        source = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
        assert hasattr(getattr(source, name), "_apply_gate") == packs == (module not in OWN_EXPERTS)


def test_a_pass_touches_the_bytes_of_the_experts_that_rows_go_to_and_no_others() -> None:
    """In a process of its own, where the pages of all other experts may not be read: reading one would end it."""
    words = [sys.executable, "-m", fenced_experts.__name__]
    run = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    used, readable, whole, end = (int(word) for word in run.stdout.split())
    assert used == 5 and readable * 12 == whole * 5
    assert end == -signal.SIGSEGV  # of a child that did read another: the pages are out of reach indeed
