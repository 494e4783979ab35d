"""Damaged files: whatever the bytes, one kind of error and no large allocation."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from swarm.base.errors import ModelError
from swarm.model.files import gguf_file, safetensors_file
from swarm.model.files.files import inside, keep, read_bounded


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "bc", "def"])
    writer.add_token_types([1, 1, 3])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("one", np.arange(64, dtype=np.float32).reshape(2, 32))
    packed = gguf.quantize(np.arange(64, dtype=np.float32).reshape(2, 32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("two", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_gguf_header_says_what_was_written(gguf_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes)
    header = gguf_file.read_header(path)
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["tokenizer.ggml.tokens"] == ["a", "bc", "def"]
    assert header.metadata["tokenizer.ggml.token_type"] == [1, 1, 3]
    one, two = header.tensors["one"], header.tensors["two"]
    assert (one.shape, one.kind, one.nbytes) == ((2, 32), "F32", 256)
    assert (two.shape, two.kind, two.nbytes) == ((2, 32), "Q8_0", 68)
    stored = np.frombuffer(gguf_bytes, np.float32, 64, one.offset)
    assert stored.tolist() == list(range(64))


def test_every_cut_of_a_gguf_is_refused(gguf_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    data_end = 2 * 68  # only padding follows the last tensor
    for length in [*range(0, len(gguf_bytes) - data_end, 7), len(gguf_bytes) - data_end]:
        path.write_bytes(gguf_bytes[:length])
        with pytest.raises(ModelError, match=r"a\.gguf is not a whole GGUF file .*fetch it again"):
            gguf_file.read_header(path)


@given(at=st.integers(0, 400), change=st.binary(min_size=1, max_size=9))
@settings(max_examples=150)
def test_a_changed_gguf_header_never_escapes(
    gguf_bytes: bytes, tmp_path_factory: pytest.TempPathFactory, at: int, change: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(gguf_bytes[:at] + change + gguf_bytes[at + len(change) :])
    try:
        header = gguf_file.read_header(path)
    except ModelError:
        return
    for tensor in header.tensors.values():
        assert 0 <= tensor.offset and tensor.offset + tensor.nbytes <= path.stat().st_size


@pytest.mark.parametrize("count", [2**63, 2**40, 2**31, (4 << 20) + 1])
@pytest.mark.parametrize("item", [0, 4, 8, 12])
def test_huge_counts_allocate_nothing(tmp_path: Path, count: int, item: int) -> None:
    name = b"general.x"
    path = tmp_path / "a.gguf"
    path.write_bytes(
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + struct.pack("<Q", len(name))
        + name
        + struct.pack("<IIQ", 9, item, count)
    )
    tracemalloc.start()
    with pytest.raises(ModelError):
        gguf_file.read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.fixture(scope="module")
def safetensors_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("st") / "a.safetensors"
    save_file({"one": torch.arange(6.0).reshape(2, 3), "two": torch.ones(4, dtype=torch.bfloat16)}, path)
    return path.read_bytes()


def test_safetensors_header_says_what_was_written(safetensors_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes)
    start, tensors = safetensors_file.read_header(path)
    one = tensors["one"]
    assert (one.shape, one.format, one.nbytes) == ((2, 3), "F32", 24)
    assert np.frombuffer(safetensors_bytes, np.float32, 6, start + one.offset).tolist() == [0, 1, 2, 3, 4, 5]
    assert tensors["two"].format == "BF16"


def test_every_cut_of_a_safetensors_file_is_refused(safetensors_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for length in range(len(safetensors_bytes)):
        path.write_bytes(safetensors_bytes[:length])
        with pytest.raises(ModelError, match=r"a\.safetensors"):
            safetensors_file.read_header(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b"null", b"{", b"\xff\xfe", b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}}', b'{"a": {"dtype": "F32", "shape": [1]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}', b"[" * 5000,
        json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode(),
    ],
)  # fmt: skip
def test_odd_safetensors_headers_are_one_kind_of_error(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(ModelError, match="fetch it again"):
        safetensors_file.read_header(path)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", "a\\..\\x", "a\x00b"])
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="leads out"):
        inside(tmp_path, name)


def test_small_files_are_small(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    keep(path, b"12345")
    assert read_bounded(path, 5) == b"12345"
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
    with pytest.raises(ModelError, match="over 4 bytes"):
        read_bounded(path, 4)
    with pytest.raises(ModelError, match="cannot read"):
        read_bounded(tmp_path / "none", 4)
