"""The way in: a model reference becomes a checkpoint (weights on disk, one tensor at a time) and a tokenizer."""

from __future__ import annotations

import json
from typing import Protocol

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from swarm.base.errors import ModelError
from swarm.base.events import Report, silent
from swarm.model.files import gguf_split
from swarm.model.files.gguf_tokenizer import gguf_end_tokens, gguf_tokenizer
from swarm.model.files.manifest import Manifest
from swarm.model.files.store import ModelStore
from swarm.model.quant.matrix import Matrix


class Checkpoint(Protocol):
    """A model's weights, as far as they are on this machine."""

    manifest: Manifest
    config: PretrainedConfig
    bytes_read: int
    """Stored bytes that were mapped so far."""

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A tensor by its transformers name, as `dtype` (floating tensors) on the CPU. Raises ModelError."""
        ...

    def hold(self, name: str, without_kernel: bool) -> Matrix | None:
        """A matrix that stays as it is stored; None where it must be unpacked. Raises ModelError."""
        ...

    def hold_stack(self, name: str, without_kernel: bool) -> tuple[Matrix, ...] | None:
        """As `hold`, of a tensor that is a stack of matrices: all experts of a projection. Raises ModelError."""
        ...

    def export_tensor_bytes(self, name: str, offset: int, length: int) -> bytes:
        """Stored bytes [offset, offset + length) of a tensor, for another node. Raises ModelError."""
        ...


def open_model(
    ref: str,
    store: ModelStore,
    layers: tuple[int, int] | None = None,
    report: Report = silent,
    offline: bool = False,
) -> Checkpoint:
    """A model's checkpoint; pulls what `layers` need and is missing (at an end of the model also embeddings or head).

    Raises ModelError when the model is unknown, unreachable or damaged.
    """
    return store.open(ref, layers, report, offline)


def load_tokenizer(
    ref: str, store: ModelStore, report: Report = silent, offline: bool = False
) -> PreTrainedTokenizerBase:
    """A model's tokenizer, chat template included where the model has one. Raises ModelError."""
    source = store.tokenizer_source(ref, report, offline)
    if source.is_file():
        return gguf_tokenizer(gguf_split.read_set(source), source, report)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, local_files_only=True, trust_remote_code=False
        )
    except Exception as exc:  # tokenizer classes fail in ways of their own
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise ModelError(f"{ref} has no tokenizer that can be loaded: {reason}") from exc
    return tokenizer


def end_tokens(checkpoint: Checkpoint, store: ModelStore, ref: str) -> frozenset[int]:
    """Token ids that end a text: from generation_config.json or a GGUF's metadata where there is one, else from the
    config."""
    manifest = checkpoint.manifest
    found = manifest.config.get("eos_token_id", manifest.text_config.get("eos_token_id"))
    source = store.tokenizer_source(ref, offline=True)
    if source.is_file() and (ends := gguf_end_tokens(gguf_split.read_set(source))):
        return ends
    if source.is_dir() and (source / "generation_config.json").is_file():
        try:
            found = json.loads((source / "generation_config.json").read_bytes()).get("eos_token_id", found)
        except (ValueError, AttributeError):
            raise ModelError(f"{source / 'generation_config.json'} is damaged; pull the model again") from None
    ids = found if isinstance(found, list) else [found]
    return frozenset(i for i in ids if isinstance(i, int))
