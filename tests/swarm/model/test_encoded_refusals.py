"""Quantised safetensors that cannot be right, or are of a method that is not read: refused by name, before weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.base.errors import ModelError
from swarm.model.files.checkpoint import open_model
from swarm.model.files.manifest import Manifest, TensorEntry
from swarm.model.files.packable import packs_encoded
from swarm.model.files.schemes import find_method, weights_of
from swarm.model.files.store import ModelStore
from swarm.model.files.weights import FileCheckpoint, _keep
from swarm.model.load import load_layers
from swarm.model.quant.bitsandbytes import BNB_ROLES
from swarm.model.quant.compressed import COMPRESSED_ROLES
from swarm.model.quant.encoding import Encoding, expand
from swarm.model.quant.ggml import GGML_ROLES, SCALE
from swarm.model.quant.integers import Integers, unpack
from tests.swarm.model import encoded_files as files
from tests.swarm.model.test_encoded import AWQ, BLOCK, INT, NV, UP, ct, gptq, tiny
from tests.swarm.model.tiny import CPU

Change = Callable[[files.Stored], None]


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store", endpoint="http://127.0.0.1:9", hub_cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        ({"quant_method": "hqq"}, "'hqq', expected fp8, .*gptq.*; take its unquantised weights, a GGUF"),
        ({"quant_method": "aqlm"}, "'aqlm'"),
        ({"bits": 4}, "no stated method"),
        (gptq(3), "gptq .*3 bits, expected 2, 4 or 8"),
        (gptq(checkpoint_format="marlin"), "checkpoint_format marlin"),
        (gptq(dynamic={"+:.*down.*": {"bits": 8}}), "dynamic gives some layers other bits"),
        ({"quant_method": "gptq"}, "'bits'"),
        ({**AWQ, "version": "gemv"}, "order of gemv"),
        ({**BLOCK, "weight_block_size": [0, 128]}, "weight_block_size"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo W4A8_AWQ"),
        (ct("marlin-24", **INT), "format marlin-24"),
        ({**ct("pack-quantized", **INT), "transform_config": {"config_groups": {"R1": {}}}}, "are to be rotated"),
        ({**ct("pack-quantized", **INT), "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        ("fp8", "is no object"),
    ],
)
def test_a_method_that_is_not_read_is_named(stated: Any, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        find_method({"model_type": "qwen3", "quantization_config": stated}, "some/model")


def test_a_quantised_gpt2_is_refused() -> None:
    with pytest.raises(ModelError, match="lie the other way"):
        find_method({"model_type": "gpt2", "quantization_config": gptq()}, "some/model")


def drop(ending: str) -> Change:
    return lambda tensors: tensors.pop(f"{UP}.{ending}")  # type: ignore[return-value]


def put(ending: str, value: torch.Tensor) -> Change:
    return lambda tensors: tensors.update({f"{UP}.{ending}": value})


def poke(ending: str, value: float) -> Change:
    def change(tensors: files.Stored) -> None:
        tensors[f"{UP}.{ending}"].view(-1)[3] = value

    return change


def nan8(tensors: files.Stored) -> None:
    tensors[f"{UP}.weight"].view(torch.uint8).view(-1)[5] = 0x7F


FP8 = files.fp8(32, 48, "weight_scale_inv")
PACK = ct("pack-quantized", **INT, symmetric=True)
NVFP4 = ct("nvfp4-pack-quantized", **NV)
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}


@pytest.mark.parametrize(
    ("write", "stated", "change", "named"),
    [
        (files.gptq(), gptq(), drop("scales"), "it lacks model.layers.1.*scale"),
        (files.gptq(), gptq(), drop("qweight"), "it belongs to no weight"),
        (files.gptq(), gptq(4, 40), drop("g_idx"), "columns do not divide into groups of 40"),
        (files.gptq(), gptq(4, 16), drop("g_idx"), r"scales have shape \[3, 64\], expected \[6, 64\]"),
        (files.gptq(), gptq(), put("g_idx", torch.zeros(63, dtype=torch.int32)), r"order has shape \[63\]"),
        (files.gptq(), gptq(), put("qzeros", torch.zeros(2, 11, dtype=torch.int32)), "zero points have shape"),
        (files.gptq(), gptq(), put("qweight", torch.zeros(8, 96)), "is F32, expected I32"),
        (files.gptq(), gptq(8), lambda t: None, "cannot be read"),
        (files.awq(), {**AWQ, "group_size": 128}, lambda t: None, "do not divide into groups of 128"),
        (FP8, {**BLOCK, "weight_block_size": [128, 128]}, lambda t: None, r"scales have shape \[.*\], expected"),
        (FP8, BLOCK, drop("weight_scale_inv"), "it lacks model.layers.1.*scale"),
        (FP8, {}, lambda t: None, "F8_E4M3 without the scales"),
        (FP8, BLOCK, put("weight", torch.zeros(96, 64)), "it stands beside plain numbers"),
        (files.packed(), PACK, drop("weight_scale"), "it lacks model.layers.1.*scale"),
        (files.packed(), PACK, put("weight", torch.zeros(96, 64)), "beside"),
        (files.nvfp4(), NVFP4, drop("weight_global_scale"), "it lacks .*weight_global_scale"),
    ],
)
def test_what_cannot_fit_is_refused_before_a_weight_is_read(
    write: files.Writer, stated: dict[str, Any], change: Change, named: str, tmp_path: Path, store: ModelStore
) -> None:
    files.save_encoded(tmp_path / "model", tiny(), write, stated, change)
    for ask in (store.show, lambda ref: open_model(ref, store)):
        with pytest.raises(ModelError, match=named) as caught:
            ask(str(tmp_path / "model"))
        assert "model.layers." in str(caught.value)


LOP = ct("pack-quantized", **INT, symmetric=False)
BNB = {"quant_method": "bitsandbytes"}


def undouble(tensors: files.Stored) -> None:
    """Its scales stay bytes, and what makes numbers of them goes."""
    drop("weight.nested_absmax")(tensors)
    drop("weight.nested_quant_map")(tensors)


@pytest.mark.parametrize(
    ("write", "stated", "change", "named"),
    [
        (files.gptq(sym=False), gptq(sym=False), drop("qzeros"), r"it lacks model\..*\.qzeros"),
        (files.gptq(sym=True), gptq(sym=True), drop("qzeros"), r"it lacks model\..*\.qzeros"),
        (files.gptq(desc_act=True), gptq(desc_act=True), drop("g_idx"), r"it lacks model\..*\.g_idx"),
        (files.awq(), AWQ, drop("qzeros"), r"it lacks model\..*\.qzeros"),
        (files.awq(), AWQ, drop("scales"), r"it lacks model\..*\.scales"),
        (files.packed(sym=False), LOP, drop("weight_zero_point"), r"it lacks model\..*\.weight_zero_point"),
        (
            files.packed(),
            ct("pack-quantized", **INT, actorder="group"),
            lambda t: None,
            r"it lacks model\..*\.weight_g_idx",
        ),
        (
            files.int8(sym=False),
            ct("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=False),
            drop("weight_zero_point"),
            r"it lacks model\..*\.weight_zero_point",
        ),
        (files.bnb4(), BNB, undouble, r"it lacks model\..*\.weight.nested_absmax"),
        (files.bnb4(), BNB, drop("weight.nested_absmax"), r"it lacks model\..*\.weight.nested_absmax"),
        (files.bnb4(), BNB, drop("weight.nested_quant_map"), r"it lacks model\..*\.nested_quant_map"),
        (files.bnb4(False), BNB, drop("weight.absmax"), r"it lacks model\..*\.weight.absmax"),
        (files.bnb4(False), BNB, drop("weight.quant_map"), r"it lacks model\..*\.weight.quant_map"),
        (
            files.bnb4(False),
            BNB,
            drop("weight.quant_state.bitsandbytes__nf4"),
            r"it lacks model\..*\.weight.quant_state.bitsandbytes__",
        ),
        (files.bnb8, BNB, drop("SCB"), r"it lacks model\..*\.SCB"),
        (files.nvfp4(True), MODELOPT, drop("weight_scale_2"), r"it lacks model\..*\.weight_scale_2"),
        (files.nvfp4(), NVFP4, drop("weight_global_scale"), r"it lacks model\..*\.weight_global_scale"),
        (FP8, BLOCK, drop("weight_scale_inv"), r"it lacks model\..*\.weight_scale_inv"),
    ],
)
def test_a_companion_that_the_config_calls_for_is_missed_by_name(
    write: files.Writer, stated: dict[str, Any], change: Change, named: str, tmp_path: Path, store: ModelStore
) -> None:
    """Without it the codes make other numbers."""
    files.save_encoded(tmp_path / "model", tiny(), write, stated, change)
    for ask in (store.show, lambda ref: open_model(ref, store)):
        with pytest.raises(ModelError, match=named):
            ask(str(tmp_path / "model"))


def test_what_a_config_says_is_not_there_is_not_missed(tmp_path: Path, store: ModelStore) -> None:
    """Codes about their middle, columns in order."""
    files.save_encoded(tmp_path / "awq", tiny(), files.awq(), {**AWQ, "zero_point": False}, drop("qzeros"))
    files.save_encoded(tmp_path / "gptq", tiny(), files.gptq(), gptq(desc_act=False), drop("g_idx"))
    for name in ("awq", "gptq"):
        assert open_model(str(tmp_path / name), store).weights[f"{UP}.weight"].encoding is not None


@pytest.mark.parametrize(
    ("write", "stated", "change", "named"),
    [
        (files.gptq(), gptq(), poke("scales", float("inf")), "scales are not finite"),
        (files.gptq(), gptq(), poke("g_idx", 2), "belongs to group 2 of 2"),
        (files.gptq(), gptq(), poke("g_idx", -1), "belongs to group"),
        (files.packed(), PACK, poke("weight_scale", float("nan")), "scales are not finite"),
        (files.packed(), PACK, put("weight_shape", torch.tensor([96, 63])), r"says it has shape \[96, 63\]"),
        (FP8, BLOCK, poke("weight_scale_inv", float("nan")), "scales are not finite"),
        (FP8, BLOCK, nan8, "values that are not finite"),
        (files.nvfp4(), NVFP4, put("weight_global_scale", torch.zeros(1)), "second scale is 0"),
        (
            files.bnb4(False),
            {"quant_method": "bitsandbytes"},
            put("weight.quant_state.bitsandbytes__nf4", torch.zeros(4, dtype=torch.uint8)),
            "quant_state is damaged",
        ),
        (
            files.bnb4(False),
            {"quant_method": "bitsandbytes"},
            put("weight.absmax", torch.zeros(7)),
            "7 scales for 6144 numbers in blocks of 64",
        ),
        (
            files.bnb4(True),
            {"quant_method": "bitsandbytes"},
            put("weight.nested_quant_map", torch.zeros(3)),
            "index .* is out of bounds",
        ),
        (FP8, BLOCK, poke("weight_scale_inv", 1e37), "scales are too large for float32"),
        (files.nvfp4(), NVFP4, put("weight_global_scale", torch.full((1,), 1e-37)), "scales are not finite|too large"),
        (
            files.int8(),
            ct("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=True),
            poke("weight_scale", 3e37),
            "scales are too large for float32",
        ),
    ],
)
@pytest.mark.parametrize("weights", ["stored", "expanded"])
def test_damaged_values_are_refused_by_the_tensors_name(
    weights: str, write: files.Writer, stated: dict[str, Any], change: Change, named: str, tmp_path: Path,
    store: ModelStore,
) -> None:  # fmt: skip
    files.save_encoded(tmp_path / "model", tiny(), write, stated, change)
    checkpoint = open_model(str(tmp_path / "model"), store)
    with pytest.raises(ModelError, match=named) as caught:
        load_layers(checkpoint, 0, 3, CPU, torch.float32, lambda event: None, weights=weights)
    assert UP in str(caught.value)


STORED: dict[str, tuple[files.Writer, dict[str, Any]]] = {
    "gptq": (files.gptq(desc_act=True), gptq(desc_act=True)),
    "awq": (files.awq(), AWQ),
    "fp8": (FP8, BLOCK),
    "packed": (files.packed(), PACK),
    "int8": (files.int8(), ct("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=True)),
    "nvfp4": (files.nvfp4(), NVFP4),
    "mxfp4": (files.mxfp4, ct("mxfp4-pack-quantized", type="float", num_bits=4, strategy="group", group_size=32)),
    "bnb4": (files.bnb4(), {"quant_method": "bitsandbytes"}),
    "bnb8": (files.bnb8, {"quant_method": "bitsandbytes"}),
}
_opened: dict[str, tuple[FileCheckpoint, dict[str, torch.Tensor]]] = {}


@pytest.mark.parametrize("kind", STORED)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_change_of_stored_bytes_is_finite_and_equal_both_ways_or_refused_by_name(
    kind: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """As stored and unpacked, the same weights are taken and the same ones refused."""
    if kind not in _opened:
        folder = tmp_path_factory.mktemp(kind)
        files.save_encoded(folder / "model", tiny(), *STORED[kind])
        opened = open_model(str(folder / "model"), ModelStore(folder / "store"))
        with opened._parts(opened.weights[f"{UP}.weight"]) as found:
            _opened[kind] = opened, {role: part.clone() for role, part in found.items()}
    checkpoint, whole = _opened[kind]
    parts = {role: part.clone() for role, part in whole.items()}
    changed = parts[data.draw(st.sampled_from(sorted(parts)))].reshape(-1).view(torch.uint8)
    at = data.draw(st.integers(0, changed.numel() - 1))
    put = data.draw(st.lists(st.sampled_from((0, 1, 127, 128, 255)) | st.integers(0, 255), min_size=1, max_size=8))
    changed[at : at + 8][: len(put)] = torch.tensor(put[: changed.numel() - at], dtype=torch.uint8)
    weight = checkpoint.weights[f"{UP}.weight"]
    assert weight.encoding is not None
    name, shape = weight.entry.name, weight.entry.shape
    numbers = taken(lambda: expand(name, shape, weight.encoding, parts, torch.float32))
    if numbers is not None:
        assert torch.isfinite(numbers).all()
    if len(shape) == 2:
        kernel = packs_encoded(weight, checkpoint.manifest.config)
        held = taken(lambda: _keep(weight.encoding, parts, shape, name, kernel, True))
        assert (held is None) == (numbers is None)
        assert held is None or torch.equal(held.rows(torch.arange(shape[0])), numbers)


def taken(load: Callable[[], Any]) -> Any:
    """What is loaded; None where it was refused by the tensor's name."""
    try:
        return load()
    except ModelError as error:
        assert UP in str(error)
        return None


@given(st.sampled_from((2, 4, 8)), st.integers(1, 5), st.integers(1, 5), st.integers(0, 1), st.randoms())
@settings(max_examples=30, deadline=None)
def test_codes_come_out_of_words_as_they_went_in(bits: int, rows: int, columns: int, dim: int, random: Any) -> None:
    per = 32 // bits
    codes = np.array([[random.randrange(2**bits) for _ in range(columns * per)] for _ in range(rows)])
    words = files.words(codes, bits)
    found = unpack(words.T.contiguous(), bits, 0).T if dim == 0 else unpack(words, bits, 1)
    assert np.array_equal(found.numpy(), codes)


@given(
    st.sampled_from(("gptq", "gptq_v2", "packed")), st.sampled_from((4, 8)), st.booleans(), st.booleans(),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_blocks_hold_the_same_numbers_to_the_last_bit(
    kind: str, bits: int, sym: bool, shuffled: bool, seed: int
) -> None:
    from swarm.model.quant.formats import find_format
    from swarm.model.quant.matrix import StoredMatrix

    rng = np.random.default_rng(seed)
    w = rng.normal(size=(16, 128)) * rng.choice([1e-3, 1, 30])
    w[rng.integers(16)] = 0
    write = (
        files.packed(bits, 64, sym)
        if kind == "packed"
        else files.gptq(bits, 64, sym, desc_act=shuffled, v2=kind == "gptq_v2")
    )
    stored, _ = write(w, rng)
    names = {"qweight": "codes", "qzeros": "zeros", "scales": "scales", "g_idx": "order", "weight_packed": "codes",
             "weight_scale": "scales", "weight_zero_point": "zeros", "weight_shape": "shape"}  # fmt: skip
    parts = {names[name]: value for name, value in stored.items()}
    encoding: Encoding = Integers(kind, bits, 64, sym)
    whole = encoding.rows(parts, 0, 16)
    assert torch.equal(whole, torch.cat([encoding.rows(parts, i, i + 1) for i in range(16)]))
    blocks = encoding.blocks(parts)
    if blocks is None:
        assert bits == 8 or kind == "packed"
        return
    form = find_format(f"gguf:{blocks.format}")
    assert form is not None
    found = StoredMatrix(form, (16, 128), blocks.data, None).rows(torch.arange(16))
    columns = torch.arange(128) if blocks.columns is None else blocks.columns
    assert torch.equal(found, whole[:, columns])


ENDINGS = sorted(
    {*COMPRESSED_ROLES, *BNB_ROLES, *GGML_ROLES, ".qweight", ".qzeros", ".scales", ".g_idx", ".weight_scale_inv"}
    | {".weight_scale_2", "_blocks", "_scales", ".weight", ".bias", ".input_scale", ".weight_format"}
)
KINDS = ["F32", "F16", "BF16", "I64", "I32", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "gguf:NVFP4"]
CONFIGS: list[Any] = [
    gptq(), gptq(8, -1), gptq(2, 0), AWQ, BLOCK, {"quant_method": "fp8"}, {"quant_method": "fbgemm_fp8"}, PACK, NVFP4,
    ct("float-quantized", type="float", strategy="block", block_structure=[8, 8]),
    ct("int-quantized", type="int", strategy="channel"), {"quant_method": "mxfp4"}, {"quant_method": "ggml"},
    {"quant_method": "modelopt", "quant_algo": "NVFP4"}, {"quant_method": "bitsandbytes"}, None,
]  # fmt: skip
ENTRIES = st.lists(
    st.tuples(
        st.sampled_from(["model.layers.0.a", "model.layers.0.b", "lm_head"]),
        st.sampled_from([*ENDINGS, SCALE]),
        st.lists(st.sampled_from([0, 1, 2, 3, 8, 16, 32, 36, 64]), max_size=4),
        st.sampled_from(KINDS),
    ),
    max_size=8,
    unique_by=lambda item: item[:2],
)


@given(st.sampled_from(CONFIGS), ENTRIES)
@settings(max_examples=300, deadline=None)
def test_any_set_of_tensors_is_read_or_refused_by_name(stated: Any, entries: list[Any]) -> None:
    tensors = tuple(
        TensorEntry(module + ending, tuple(shape), kind, math.prod(shape), "0" * 64)
        for module, ending, shape, kind in entries
    )
    config = {"model_type": "qwen3", "num_hidden_layers": 1} | ({"quantization_config": stated} if stated else {})
    try:
        found = weights_of(Manifest("m", config, tensors))
    except ModelError as exc:
        assert "m" in str(exc)
        return
    parts = [part.name for weight in found.values() for part in weight.parts.values()]
    assert len(parts) == len(set(parts))  # no tensor makes up two weights
    for weight in found.values():
        assert weight.entry.nbytes == sum(part.nbytes for part in weight.parts.values())


SETTINGS = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([c for c in CONFIGS if c]), st.data())
@settings(max_examples=300, deadline=None)
def test_any_quantization_config_is_read_or_refused_by_name(stated: dict[str, Any], data: st.DataObject) -> None:
    bent = {**stated, data.draw(st.sampled_from(sorted(stated))): data.draw(SETTINGS)}
    tensors = tuple(
        TensorEntry(f"model.layers.0.a{ending}", (64, 64), kind, 4096, "0" * 64)
        for ending, kind in ((".qweight", "I32"), (".scales", "F16"), (".weight", "F8_E4M3"), (".weight_scale", "F32"))
    )
    try:
        weights_of(Manifest("m", {"model_type": "qwen3", "quantization_config": bent}, tensors))
    except ModelError:
        return
