"""Folders with Medusa heads: laid out as its authors do, or as vLLM does."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from draft.medusa import MedusaDrafter, MedusaHead
from swarm.base.errors import ModelError
from swarm.model.eagle_folder import WEIGHTS
from swarm.model.files.manifest import Manifest

MOST_HEADS = 16
MOST_BLOCKS = 8
_AUTHORS = re.compile(r"(?:medusa_head\.)?(\d+)\.(\d+)\.(?:linear\.)?(weight|bias)")
_VLLM_BLOCK = re.compile(r"blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)")
_VLLM_HEAD = re.compile(r"lm_heads\.(\d+)\.weight")
_TOKENS = "token_map"

Places = dict[tuple[int, int, str], str]
"""Names of tensors by head, block within it and weight or bias; what scores is block -1."""


def has_heads(names: Collection[str]) -> bool:
    """Whether tensors of these names are Medusa heads."""
    return bool(_places(names))


def _places(names: Collection[str]) -> Places:
    places = Places()
    for name in names:
        if (found := _AUTHORS.fullmatch(name)) is not None:
            place = int(found[2]) if ".linear." in name else -1
            places[int(found[1]), place, found[3]] = name
        elif (found := _VLLM_BLOCK.fullmatch(name)) is not None:
            places[int(found[1]), int(found[2]), found[3]] = name
        elif (found := _VLLM_HEAD.fullmatch(name)) is not None:
            places[int(found[1]), -1, "weight"] = name
    return places


def load_medusa(path: Path, target: Manifest, dtype: torch.dtype, context: int) -> MedusaDrafter:
    """The heads in a folder for a target. Raises ModelError for what does not fit it, by name."""
    try:
        with safe_open(path / WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read the drafter in {path}: {error}") from error
    places = _places(tensors)
    count = 1 + max(head for head, _, _ in places)
    if count > MOST_HEADS or any(block >= MOST_BLOCKS for _, block, _ in places):
        raise ModelError(f"expected at most {MOST_HEADS} heads of {MOST_BLOCKS} blocks in {path}, found more")
    width, ids = target.hidden_size, tensors.get(_TOKENS)
    vocabulary = target.vocab_size if ids is None else len(ids)

    def named(head: int, block: int, part: str, shape: tuple[int, ...]) -> torch.Tensor:
        name = places.get((head, block, part))
        has = "none" if name is None else str(list(tensors[name].shape))
        if name is None or tuple(tensors[name].shape) != shape:
            called = name or f"the {'blocks' if block >= 0 else 'scores'} of head {head}"
            raise ModelError(f"expected {called} of shape {list(shape)} in {path}, found {has}: made for another model")
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ModelError(f"expected finite numbers in {name} of the drafter in {path}, found others")
        found: torch.Tensor = tensors[name].to(dtype)
        return found

    tokens, order = (None, None) if ids is None else _own_ids(ids, target.vocab_size, path)
    heads = []
    for head in range(count):
        depth = 1 + max((block for at, block, _ in places if at == head), default=-1)
        blocks = tuple(
            (
                named(head, block, "weight", (width, width)),
                named(head, block, "bias", (width,)) if (head, block, "bias") in places else None,
            )
            for block in range(depth)
        )
        matrix = named(head, -1, "weight", (vocabulary, width))
        heads.append(MedusaHead(blocks, matrix if order is None else matrix[order]))
    return MedusaDrafter(heads, target.n_layers, tokens, context)


def _own_ids(ids: torch.Tensor, vocabulary: int, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's ids that scores stand for, ascending, and the order that makes them so."""
    fits = ids.dim() == 1 and len(ids) > 0 and not ids.is_floating_point()
    if fits:
        ids, order = ids.long().sort()
        if int(ids[0]) >= 0 and int(ids[-1]) < vocabulary and not bool((ids[1:] == ids[:-1]).any()):
            return ids, order
    raise ModelError(f"expected {_TOKENS} to name ids of the target, each once, in {path}, found others")
