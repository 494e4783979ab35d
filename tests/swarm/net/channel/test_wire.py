from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.base.errors import PeerError, UsageError
from swarm.net.channel.wire import WIRE_FORMATS, decode_tensor_untrusted, encode_tensor, fits, wire_nbytes

SHAPES = st.lists(st.integers(0, 7), min_size=1, max_size=4)
EXACT = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WORST = {"int8": 0.5 / 127, "fp8": 1 / 16}


@given(SHAPES, st.sampled_from(sorted(EXACT)), st.integers(0, 2**31))
def test_plain_formats_are_exact(shape: list[int], wire: str, seed: int) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(EXACT[wire])
    header, body = encode_tensor(tensor, wire)
    assert memoryview(body).nbytes == wire_nbytes(wire, tuple(shape))
    for buffer in (bytearray(body), bytes(body)):
        back = decode_tensor_untrusted(header, buffer)
        assert back.dtype == tensor.dtype and torch.equal(back, tensor)


@given(SHAPES, st.sampled_from(["int8", "fp8"]), st.integers(0, 2**31), st.floats(1e-20, 1e20))
def test_scaled_formats_keep_each_row_within_its_step(shape: list[int], wire: str, seed: int, size: float) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size
    header, body = encode_tensor(tensor, wire)
    back = decode_tensor_untrusted(header, body)
    assert back.shape == tensor.shape and memoryview(body).nbytes == (
        wire_nbytes(wire, tuple(shape)) if tensor.numel() else 0
    )
    if tensor.numel():
        step = tensor.abs().amax(-1, keepdim=True) * WORST[wire] * 1.001 + 1e-37
        assert bool(((back - tensor).abs() <= step).all())


def test_a_contiguous_tensor_is_not_copied_either_way() -> None:
    tensor = torch.arange(12.0).reshape(3, 4)
    header, body = encode_tensor(tensor, "float32")
    tensor[0, 0] = 99.0
    assert torch.frombuffer(bytearray(body), dtype=torch.float32)[0] == 99.0
    received = bytearray(body)
    back = decode_tensor_untrusted(header, received)
    received[0:4] = bytes(4)
    assert back[0, 0] == 0.0


def test_strided_and_differentiable_tensors() -> None:
    tensor = torch.arange(12.0).reshape(3, 4).t().requires_grad_()
    header, body = encode_tensor(tensor, "float32")
    assert torch.equal(decode_tensor_untrusted(header, body), tensor.detach())


def test_rows_of_zeros_and_of_nan() -> None:
    tensor = torch.tensor([[0.0, 0.0], [float("nan"), 1.0], [3.0, -1.5]])
    header, body = encode_tensor(tensor, "int8")
    back = decode_tensor_untrusted(header, body)
    assert torch.equal(back[0], tensor[0]) and bool(back[1].isnan().all())
    assert back[2, 0] == 3.0


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"wire": "float64", "shape": [2]},
        {"wire": 7, "shape": [2]},
        {"wire": "float32"},
        {"wire": "float32", "shape": []},
        {"wire": "float32", "shape": [1] * 5},
        {"wire": "float32", "shape": [-2]},
        {"wire": "float32", "shape": [2.0]},
        {"wire": "float32", "shape": [True, 2]},
        {"wire": "float32", "shape": [3]},
        {"wire": "float32", "shape": [2**31, 2**31, 2**31, 2**31]},
        {"wire": "int8", "shape": [2]},
        {"wire": "float32", "shape": [0, 2]},
    ],
)
def test_refused(header: dict[str, Any]) -> None:
    with pytest.raises(PeerError):
        decode_tensor_untrusted(header, bytearray(8))


def test_more_than_allowed_is_refused() -> None:
    header, body = encode_tensor(torch.zeros(100), "float32")
    with pytest.raises(PeerError, match="at most 399"):
        decode_tensor_untrusted(header, body, max_bytes=399)


@given(
    st.dictionaries(
        st.sampled_from(["wire", "shape"]), st.one_of(st.sampled_from(WIRE_FORMATS), SHAPES, st.integers())
    ),
    st.binary(max_size=64),
)
@settings(max_examples=200)
def test_random_headers_raise_the_one_error(header: dict[str, Any], body: bytes) -> None:
    try:
        decode_tensor_untrusted(header, body)
    except PeerError:
        pass


def test_unknown_formats_are_misuse_here() -> None:
    with pytest.raises(UsageError, match="wire format"):
        encode_tensor(torch.zeros(2), "float64")
    with pytest.raises(UsageError, match="dimensions"):
        encode_tensor(torch.tensor(1.0), "float32")


def test_what_a_format_cannot_hold_is_known_before_it_is_sent() -> None:
    large = torch.tensor([[1.0, 70_000.0]])
    assert not fits(large, "float16")
    assert all(fits(large, wire) for wire in ("float32", "bfloat16", "int8"))
    assert not fits(torch.tensor([[3.4e38]]), "bfloat16")
