"""In every format that weights may be held in, the bits of a row follow from the weights and from its own path."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm.model.block import Block, load_block
from swarm.model.exact import why_not
from swarm.model.files.gguf_file import READABLE
from swarm.model.files.store import ModelStore
from swarm.model.quant.formats import _SMALL_FLOATS, blocks_format, find_format, has_kernel
from swarm.model.quant.native import library
from tests.swarm.model import encoded_files
from tests.swarm.model.exact_rows import LAYERS, config_of, loaded, random_text, reference
from tests.swarm.model.histories import live
from tests.swarm.model.test_encoded import METHODS
from tests.swarm.model.tiny import CPU, random_model

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels were built: install with a C++ compiler")

TEXT = 90
"""More than one of attention's chunks of 64."""
BLOCKS = [*filter(lambda name: find_format(f"gguf:{name}") is not None, sorted(READABLE)), *_SMALL_FLOATS]
"""GGUF's formats of blocks, and those that encodings of small floats are brought into."""
UNPACKED = [(number, method) for number, method in enumerate(METHODS) if method[3] is None]
"""Encodings of safetensors that no kernel takes: unpacked in parts for every product."""
SHORT = ("IQ2_XS",)
"""In the normal run, beside those of `test_exact_rows.py`; a format takes some seconds."""
Found = tuple[Block, list[int], dict[int, torch.Tensor]]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def with_truth(block: Block) -> Found:
    """A block, a text and its rows after every layer."""
    assert why_not(block) is None
    text = random_text(6, TEXT)
    return block, text, reference(block, text)


@functools.lru_cache(maxsize=1)
def in_blocks(name: str) -> Found:
    form = blocks_format(name)
    assert form is not None
    weights = "auto" if has_kernel(form, (256, 256), library()) else "stored"
    return with_truth(loaded(random_model(config_of("llama-large")), name, weights))


@functools.lru_cache(maxsize=1)
def encoded(number: int, folder: Path) -> Found:
    _, write, stated, _ = METHODS[number]
    encoded_files.save_encoded(folder / "model", random_model(config_of("llama")), write, stated)
    checkpoint = ModelStore(folder / "store").open(str(folder / "model"), None)
    return with_truth(load_block(checkpoint, 0, LAYERS, CPU, torch.bfloat16, weights="stored"))


few = settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))


def test_formats_of_all_kinds_are_among_them() -> None:
    kernels = [name for name in BLOCKS if has_kernel(_form(name), (256, 256), library())]
    assert {"Q4_0", "Q4_K", "IQ4_XS", "MXFP4", "FP8_E4M3", "NVFP4_ROWS"} <= set(kernels) < set(BLOCKS)
    assert {name for _, (name, *_) in UNPACKED} >= {"gptq-int4-g16", "fp8-fp8-32x48", "bitsandbytes-4bit"}


def _form(name: str) -> Any:
    return blocks_format(name)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SHORT else pytest.mark.soak) for n in BLOCKS])
@few
@given(data=st.data())
def test_every_history_gives_the_same_bits_in_blocks(name: str, data: st.DataObject) -> None:
    live(data, *in_blocks(name), 6)


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=pytest.mark.soak if n != UNPACKED[0][0] else (), id=m[0]) for n, m in UNPACKED],
)
@few
@given(data=st.data())
def test_and_unpacked_for_every_product(
    number: int, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    live(data, *encoded(number, tmp_path_factory.getbasetemp() / f"encoded-{number}"), 6)
