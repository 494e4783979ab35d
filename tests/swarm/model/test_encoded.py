"""Quantised safetensors: every method read to the last bit, held packed where a kernel has its numbers, refused by
name where not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from swarm.base.errors import ModelError
from swarm.discovery.model_shape import model_shape
from swarm.model.block import load_block
from swarm.model.files.checkpoint import open_model
from swarm.model.files.schemes import layer_weights
from swarm.model.files.store import ModelStore
from swarm.model.quant.encoding import EncodedMatrix, MovedColumns
from swarm.model.quant.matrix import PackedMatrix
from swarm.model.quant.native import library
from swarm.model.weights_as import PACKED
from tests.swarm.model import encoded_files as files
from tests.swarm.model.files.test_gguf import LAYOUT, TEXT
from tests.swarm.model.tiny import CPU, certain, logits_of, plain, random_model, tiny_config

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store", endpoint="http://127.0.0.1:9", hub_cache=tmp_path / "cache")


def tiny(**changes: Any) -> Any:
    return random_model(
        transformers.Qwen3Config(
            hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, vocab_size=97, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, **changes,
        )
    )  # fmt: skip


def ct(form: str, **weights: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
    }  # fmt: skip


def gptq(bits: int = 4, group: int = 32, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, **more}


INT = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32}
FLOAT = {"type": "float", "num_bits": 8, "symmetric": True}
NV = {"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16, "symmetric": True}
BLOCK = {"quant_method": "fp8", "weight_block_size": [32, 48], "activation_scheme": "dynamic"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}

# name, how it is packed, what the config says, format that a kernel takes (None: unpacked)
METHODS: list[tuple[str, files.Writer, dict[str, Any], str | None]] = [
    ("gptq-int4-g32", files.gptq(), gptq(sym=True, desc_act=False), "Q4_0"),
    ("gptq-int4-g32", files.gptq(sym=False, desc_act=True), gptq(sym=False, desc_act=True), "Q5_0"),
    ("gptq-int4-g32", files.gptq(sym=False, v2=True), gptq(sym=False, checkpoint_format="gptq_v2"), "Q5_0"),
    ("gptq-int8-channel", files.gptq(8, 0), gptq(8, -1, sym=True), "Q8_0"),
    ("gptq-int8-g32", files.gptq(8, 32, sym=False), gptq(8, 32, sym=False), None),
    ("gptq-int4-g16", files.gptq(4, 16), gptq(4, 16), None),
    ("awq-int4-g32", files.awq(), AWQ, "Q5_0"),
    ("compressed-tensors-int4-g32", files.packed(), ct("pack-quantized", **INT, symmetric=True), "Q4_0"),
    ("compressed-tensors-int4-g32", files.packed(sym=False), ct("pack-quantized", **INT, symmetric=False), "Q5_0"),
    ("compressed-tensors-int4-g32", files.packed(dtype=torch.float32), ct("pack-quantized", **INT), None),
    (
        "compressed-tensors-int8-channel",
        files.packed(8, 0),
        ct("pack-quantized", type="int", num_bits=8, strategy="channel", symmetric=True),
        "Q8_0",
    ),
    (
        "compressed-tensors-int8-channel",
        files.int8(),
        ct("int-quantized", type="int", num_bits=8, strategy="channel", symmetric=True),
        "Q8_0",
    ),
    (
        "compressed-tensors-int8-channel",
        files.int8(sym=False),
        ct("int-quantized", type="int", num_bits=8, strategy="channel", symmetric=False),
        None,
    ),
    ("fp8-fp8-32x48", files.fp8(32, 48, "weight_scale_inv"), BLOCK, None),
    (
        "fp8-fp8-128x128",
        files.fp8(128, 128, "weight_scale_inv"),
        {**BLOCK, "weight_block_size": [128, 128]},
        "FP8_E4M3",
    ),
    ("fp8-fp8-tensor", files.fp8(0, 0, "weight_scale_inv"), {"quant_method": "fp8"}, "FP8_E4M3"),
    ("fbgemm-fp8-channel", files.fp8(1, 0, "weight_scale"), {"quant_method": "fbgemm_fp8"}, "FP8_E4M3"),
    (
        "compressed-tensors-fp8-channel",
        files.fp8(1, 0, "weight_scale", torch.bfloat16),
        ct("float-quantized", **FLOAT, strategy="channel"),
        "FP8_E4M3",
    ),
    (
        "compressed-tensors-fp8-tensor",
        files.fp8(0, 0, "weight_scale"),
        ct("float-quantized", **FLOAT, strategy="tensor"),
        "FP8_E4M3",
    ),
    ("compressed-tensors-nvfp4", files.nvfp4(), ct("nvfp4-pack-quantized", **NV), "NVFP4_ROWS"),
    (
        "compressed-tensors-mxfp4",
        files.mxfp4,
        ct("mxfp4-pack-quantized", type="float", num_bits=4, strategy="group", group_size=32),
        "MXFP4",
    ),
    ("modelopt-nvfp4", files.nvfp4(True), {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4_ROWS"),
    (
        "modelopt-fp8-tensor",
        files.fp8(0, 0, "weight_scale"),
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        "FP8_E4M3",
    ),
    ("bitsandbytes-int8", files.bnb8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, None),
    ("bitsandbytes-4bit", files.bnb4(), {"quant_method": "bitsandbytes", "load_in_4bit": True}, None),
    ("bitsandbytes-4bit", files.bnb4(False), {"quant_method": "bitsandbytes", "load_in_4bit": True}, None),
]
TWICE = ("compressed-tensors-nvfp4", "modelopt-nvfp4", "bitsandbytes-int8", "bitsandbytes-4bit")
IDS = [f"{i}-{name}" for i, (name, _, _, _) in enumerate(METHODS)]


@pytest.mark.parametrize(("name", "write", "stated", "form"), METHODS, ids=IDS)
def test_a_quantised_folder_is_the_model_of_its_numbers(
    name: str, write: files.Writer, stated: dict[str, Any], form: str | None, tmp_path: Path, store: ModelStore
) -> None:
    model = files.save_encoded(tmp_path / "model", tiny(), write, stated)
    checkpoint = open_model(str(tmp_path / "model"), store)
    weight = checkpoint.read(f"{UP}.weight", torch.float32)
    wanted = model.state_dict()[f"{UP}.weight"]
    if name in TWICE:  # two products in float32 where the reference has one in float64
        torch.testing.assert_close(weight, wanted, rtol=3e-7, atol=0)
    else:
        assert torch.equal(weight, wanted)
    for cuts in ((0, 3), (0, 1, 3)):
        torch.testing.assert_close(logits_of(checkpoint, TEXT, cuts), plain(model, TEXT), rtol=0, atol=3e-5)
    assert name in store.show(str(tmp_path / "model")).formats

    matrix = checkpoint.hold(f"{UP}.weight", without_kernel=False)
    if form is None or library() is None:
        assert matrix is None
        matrix = checkpoint.hold(f"{UP}.weight", without_kernel=True)
        if name == "bitsandbytes-4bit":
            assert matrix is None
            return
        assert isinstance(matrix, EncodedMatrix)
        assert matrix.kernel == "unpacked"
    else:
        assert isinstance(matrix, PackedMatrix | MovedColumns)
        assert matrix.form.name == form
    assert torch.equal(matrix.rows(torch.arange(96)), weight)
    x = torch.randn(5, 64)
    torch.testing.assert_close(matrix.product(x, None), x @ weight.T, rtol=0, atol=0.05)


def held(block: Any, checkpoint: Any) -> int:
    """Bytes of all layers: of a matrix those that it says, of others four a number."""
    modules = dict(block.loaded.model.named_modules())
    total = 0
    for weight in layer_weights(checkpoint.manifest, 0, 3):
        if ".layers." in weight.entry.name:
            matrix = getattr(modules[weight.entry.name.removesuffix(".weight")], "matrix", None)
            total += 4 * math.prod(weight.entry.shape) if matrix is None else matrix.nbytes
    return total


@pytest.mark.parametrize(
    ("write", "stated"),
    [
        (files.gptq(), gptq()),
        (files.awq(), AWQ),
        (files.fp8(32, 48, "weight_scale_inv"), BLOCK),
        (files.fp8(1, 0, "weight_scale"), {"quant_method": "fbgemm_fp8"}),
        (files.nvfp4(), ct("nvfp4-pack-quantized", **NV)),
    ],
)
@pytest.mark.parametrize("weights", ["auto", "stored", "expanded"])
def test_the_planner_counts_what_is_held(
    weights: str, write: files.Writer, stated: dict[str, Any], tmp_path: Path, store: ModelStore
) -> None:
    if library() is None and weights == "auto":
        pytest.skip("no kernels here")
    files.save_encoded(tmp_path / "model", tiny(), write, stated)
    checkpoint = open_model(str(tmp_path / "model"), store)
    block = load_block(checkpoint, 0, 3, CPU, torch.float32, weights=weights)
    planned = model_shape(checkpoint.manifest, torch.float32, weights)
    assert sum(planned.layer_bytes) == pytest.approx(held(block, checkpoint), rel=0.05)
    if weights == "auto" and stated["quant_method"] in ("gptq", "awq"):
        assert block.computes_in == PACKED


@pytest.mark.skipif(library() is None, reason="no kernels here")
def test_a_packed_block_says_what_the_numbers_say(tmp_path: Path, store: ModelStore) -> None:
    write, stated = files.gptq(sym=False, desc_act=True), gptq(sym=False, desc_act=True)
    model = files.save_encoded(tmp_path / "model", tiny(), write, stated)
    checkpoint = open_model(str(tmp_path / "model"), store)
    wanted = plain(model, TEXT)
    block = load_block(checkpoint, 0, 3, CPU, torch.float32, weights="stored")
    from swarm.model.block import Job
    from swarm.model.kvcache import KVPool
    from swarm.model.rows import no_commits

    kv = KVPool(block, 1 << 30).open(LAYOUT, 0, 3)
    (found,) = block.forward([Job(kv, no_commits(), certain(TEXT, 0, LAYOUT), None)])
    assert float((found - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


def test_experts_in_fp8_are_read_one_by_one(tmp_path: Path, store: ModelStore) -> None:
    model = random_model(tiny_config("qwen3-moe"))
    write = files.fp8(32, 48, "weight_scale_inv")

    def apart(tensors: files.Stored) -> None:
        for name in [n for n in tensors if ".experts." in n]:
            stem, stack = name.rpartition(".")[0], model.state_dict()[name]
            del tensors[name]
            for i, whole in enumerate(stack):
                halves = whole.chunk(2) if "gate_up" in name else (whole,)
                kinds = ("gate_proj", "up_proj") if "gate_up" in name else ("down_proj",)
                for kind, half in zip(kinds, halves, strict=True):
                    stored, values = write(half.double().numpy(), np.random.default_rng(0))
                    half.copy_(torch.from_numpy(values))
                    tensors |= {f"{stem}.{i}.{kind}.{key}": value for key, value in stored.items()}

    files.save_encoded(tmp_path / "model", model, write, BLOCK, apart)
    checkpoint = open_model(str(tmp_path / "model"), store)
    for cuts in ((0, 6), (0, 3, 6)):
        torch.testing.assert_close(logits_of(checkpoint, TEXT, cuts), plain(model, TEXT), rtol=0, atol=3e-5)


def test_groups_of_settings_are_for_the_layers_that_they_name(tmp_path: Path, store: ModelStore) -> None:
    four, eight = files.packed(4, 32), files.packed(8, 0)
    calls = iter(range(1000))

    def write(w: Any, rng: Any) -> Any:  # state dicts go q, k, v, o, gate, up, down
        return (eight if next(calls) % 7 == 6 else four)(w, rng)

    channel = {"type": "int", "num_bits": 8, "strategy": "channel", "symmetric": True}
    stated = ct("pack-quantized", **INT, symmetric=True)
    stated["config_groups"]["group_1"] = {"targets": [r"re:.*mlp\.down_proj$"], "weights": channel}
    model = files.save_encoded(tmp_path / "model", tiny(), write, stated)
    checkpoint = open_model(str(tmp_path / "model"), store)
    torch.testing.assert_close(logits_of(checkpoint, TEXT, (0, 2, 3)), plain(model, TEXT), rtol=0, atol=3e-5)
    stated["config_groups"]["group_1"]["targets"] = ["re:(.*)*mlp"]
    files.save_encoded(tmp_path / "other", tiny(), four, stated)
    with pytest.raises(ModelError, match="is too involved to follow"):
        open_model(str(tmp_path / "other"), store)
