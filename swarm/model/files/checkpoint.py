"""The way in: a model reference becomes a checkpoint (weights on disk, one tensor at a time) and a tokenizer."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from swarm.base.errors import ModelError
from swarm.base.events import Event, Report, silent
from swarm.model.files import gguf_split
from swarm.model.files.known import stamp_of
from swarm.model.files.manifest import Manifest
from swarm.model.files.store import ModelStore
from swarm.model.quant.matrix import Matrix
from swarm.model.text.tokenizer import FastTokenizer, Tokenizer, TokenizerData, data_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".onnx", ".msgpack", ".gguf")
"""Ends of the names of files that no tokenizer is read from."""
_MOST_FILES = 500
"""In a folder whose tokenizer is remembered: a model's has a dozen or two."""


class Checkpoint(Protocol):
    """A model's weights, as far as they are on this machine."""

    manifest: Manifest
    bytes_read: int
    """Stored bytes that were mapped so far."""

    @property
    def config(self) -> PretrainedConfig:
        """For whoever builds the model: working it out may import transformers' modelling. Raises ModelError."""
        ...

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A tensor by its transformers name, as `dtype` (floating tensors) on the CPU. Raises ModelError."""
        ...

    def read_rows(self, name: str, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """Rows int64 [n] of what `read` gives; None where rows are not read alone. Raises ModelError."""
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


def load_tokenizer(ref: str, store: ModelStore, report: Report = silent, offline: bool = False) -> Tokenizer:
    """A model's tokenizer, chat template included where the model has one. Raises ModelError.

    What transformers makes of the model's files is kept, and the next start needs no transformers for it.
    """
    source = store.tokenizer_source(ref, report, offline)
    name = _note_name("tokenizer", source)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if name is not None:
            return FastTokenizer(TokenizerData.from_json(store.notes.read(name)))
    told: list[Event] = []

    def tell(event: Event) -> None:
        told.append(event)
        report(event)

    tokenizer: Tokenizer = transformers_tokenizer(source, ref, tell)
    # What was said on the way must be said again next time.
    data = None if told or name is None else data_of(tokenizer)
    if data is None or name is None:
        return tokenizer
    store.notes.write(name, asdict(data))
    return FastTokenizer(data)


def _note_name(what: str, source: Path) -> str | None:
    """The name of a note about the files that a tokenizer is read from; None where there is none to be kept."""
    try:
        if source.is_file():
            files = [source.parent / part for part in gguf_split.part_names(source.name)]
        else:
            files = sorted(p for p in source.rglob("*") if p.suffix not in _WEIGHTS and p.is_file())
        return f"{what}-{stamp_of(files)}" if 0 < len(files) <= _MOST_FILES else None
    except (OSError, ModelError):
        return None


def transformers_tokenizer(source: Path, ref: str, report: Report = silent) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or a GGUF file, with all that transformers' own have: to be saved, or to render its
    template in this process. Raises ModelError."""
    if source.is_file():
        from swarm.model.files.gguf_tokenizer import gguf_tokenizer  # brings transformers along

        return gguf_tokenizer(gguf_split.read_set(source), source, report)
    from transformers import AutoTokenizer

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
    if source.is_file() and (ends := _gguf_ends(source, store)):
        return ends
    if source.is_dir() and (source / "generation_config.json").is_file():
        try:
            found = json.loads((source / "generation_config.json").read_bytes()).get("eos_token_id", found)
        except (ValueError, AttributeError):
            raise ModelError(f"{source / 'generation_config.json'} is damaged; pull the model again") from None
    ids = found if isinstance(found, list) else [found]
    return frozenset(i for i in ids if isinstance(i, int))


def _gguf_ends(source: Path, store: ModelStore) -> frozenset[int]:
    name = _note_name("ends", source)
    known = None if name is None else store.notes.read(name)
    if isinstance(known, list) and all(isinstance(token, int) for token in known):
        return frozenset(known)
    from swarm.model.files.gguf_tokenizer import gguf_end_tokens

    ends = gguf_end_tokens(gguf_split.read_set(source))
    if name is not None:
        store.notes.write(name, sorted(ends))
    return ends
