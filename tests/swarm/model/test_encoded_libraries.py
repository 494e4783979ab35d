"""Our reading of a quantised matrix against the libraries that define the formats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from swarm.model.quant.compressed import COMPRESSED_ROLES
from swarm.model.quant.encoding import Encoding
from swarm.model.quant.floats import Float4, ScaledFloats
from swarm.model.quant.integers import Integers
from tests.swarm.model import encoded_files as files

F32 = torch.float32
INT4: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
INT8: dict[str, Any] = {"num_bits": 8, "type": "int", "strategy": "channel"}
FLOAT8: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True}
FLOAT4: dict[str, Any] = {"num_bits": 4, "type": "float", "symmetric": True}


@pytest.mark.parametrize(
    ("form", "write", "arguments", "encoding"),
    [
        ("pack-quantized", files.packed(dtype=F32), {**INT4, "symmetric": True}, Integers("packed", 4, 32, True)),
        ("pack-quantized", files.packed(4, 32, False, F32), {**INT4, "symmetric": False},
         Integers("packed", 4, 32, False)),
        ("pack-quantized", files.packed(8, 0, True, F32), {**INT8, "symmetric": True}, Integers("packed", 8, 0, True)),
        ("int-quantized", files.int8(sym=False), {**INT8, "symmetric": False}, Integers("int", 8, 0, False)),
        ("float-quantized", files.fp8(1, 0, "weight_scale"), {**FLOAT8, "strategy": "channel"},
         ScaledFloats("", (1, 0))),
        ("float-quantized", files.fp8(0, 0, "weight_scale"), {**FLOAT8, "strategy": "tensor"},
         ScaledFloats("", (0, 0))),
        ("nvfp4-pack-quantized", files.nvfp4(), {**FLOAT4, "strategy": "tensor_group", "group_size": 16},
         Float4("", 16)),
        ("mxfp4-pack-quantized", files.mxfp4, {**FLOAT4, "strategy": "group", "group_size": 32}, Float4("", 32)),
    ],
)  # fmt: skip
def test_compressed_tensors_says_the_same(
    form: str, write: files.Writer, arguments: dict[str, Any], encoding: Encoding
) -> None:
    rng = np.random.default_rng(0)
    stored, _ = write(rng.normal(size=(96, 128)), rng)
    if form == "int-quantized":  # it multiplies in the scales' type
        stored["weight_scale"] = stored["weight_scale"].float()
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments))
    wanted = BaseCompressor.get_value_from_registry(form).decompress(dict(stored), scheme)["weight"]
    parts = {COMPRESSED_ROLES[f".{name}"]: value for name, value in stored.items()}
    assert torch.equal(encoding.rows(parts, 0, 96).to(wanted.dtype), wanted)


def test_gpt_oss_experts_are_those_of_transformers() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 64, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(110, 130, (3, 64, 2), dtype=torch.uint8, generator=generator)
    wanted = convert_moe_packed_tensors(blocks, scales, dtype=F32)
    found = Float4("mxfp4", 32, stacked=True).rows({"codes": blocks, "scales": scales}, 0, 3)
    assert torch.equal(found, wanted)


def test_fp8_in_blocks_is_that_of_transformers() -> None:
    rng = np.random.default_rng(0)
    stored, _ = files.fp8(32, 64, "weight_scale_inv")(rng.normal(size=(96, 128)), rng)
    codes, scales = stored["weight"], stored["weight_scale_inv"]
    wanted = _dequantize_fp8_weight(codes, scales, [32, 64], F32)
    assert torch.equal(ScaledFloats("fp8", (32, 64)).rows({"codes": codes, "scales": scales}, 0, 96), wanted)
