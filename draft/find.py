"""Which model drafts for a target when nobody named one: the first of these that there is.

1. A drafter beside the target: its folder's `drafter`, or `NAME.drafter` beside `NAME.gguf`.
2. The drafter that ships with this package for the target.
   These two were made for it. Where the target's checkpoint has an MTP head, which drafts at the tail, they draft
   beside it, and nothing of what follows is looked for: the head was trained with the model, and costs nothing here.
3. The smallest model in the store that has the target's tokenizer.
4. The default model, across vocabularies, where it is here (`swarm model pull`; 98 MB). Nothing is fetched unasked: a
   machine without a network would wait for it at every start.

3 and 4 have at most half the target's bytes. Whether drafting pays is measured while a run is under way.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from draft.asset import default_drafter, same_vocabulary
from swarm.base.errors import ModelError
from swarm.model.eagle_folder import BESIDE
from swarm.model.files.checkpoint import load_tokenizer, open_model
from swarm.model.files.manifest import Manifest
from swarm.model.files.named import DEFAULT_MODEL, NAMED
from swarm.model.files.store import ModelStore
from swarm.model.text.tokenizer import Tokenizer

LARGEST_SHARE = 0.5
"""Of the target's bytes. A drafter of the target's own size would hold up a stage on the same machine."""


@dataclass(frozen=True)
class Found:
    """A drafter to load: `ref` as `draft.asset.load_drafter` takes it, and why this one."""

    ref: str
    why: str

    @property
    def name(self) -> str:
        """For people: a folder by its last part."""
        return Path(self.ref).name


def find_drafter(
    target: Manifest,
    tokenizer: Tokenizer,
    store: ModelStore,
    beside: Path | None = None,
    at_tail: bool = False,
    without: AbstractSet[str] = frozenset(),
) -> Found | None:
    """The drafter for a target, None when there is none. `at_tail`: the target's own head drafts there. `without`:
    references of those that were tried and are of no use.

    Fetches nothing. Raises UsageError where what ships is damaged.
    """
    if beside is not None and (lies := _beside(beside)) is not None and str(lies) not in without:
        return Found(str(lies), "it lies beside the model")
    if (shipped := default_drafter(target)) is not None and str(shipped) not in without:
        return Found(str(shipped), "it was made for this model")
    if at_tail:
        return None
    largest = LARGEST_SHARE * _nbytes(target)
    if (sibling := _sibling(target, tokenizer, store, largest, without)) is not None:
        return Found(sibling, "the smallest model here with the same tokenizer")
    if DEFAULT_MODEL not in without and NAMED[DEFAULT_MODEL].nbytes <= largest and _is_here(DEFAULT_MODEL, store):
        return Found(DEFAULT_MODEL, "no smaller model here has the target's tokenizer")
    return None


def _is_here(ref: str, store: ModelStore) -> bool:
    try:
        return store.path(ref).exists()
    except ModelError:
        return False


def _beside(path: Path) -> Path | None:
    """Where a drafter lies beside the target, whole or not."""
    folder = path / BESIDE if path.is_dir() else path.with_suffix(".drafter")
    return folder if (folder / "config.json").is_file() else None


def _sibling(
    target: Manifest, tokenizer: Tokenizer, store: ModelStore, largest: float, without: AbstractSet[str]
) -> str | None:
    """The smallest model in the store that is here as a whole, at most so large and has the same tokenizer."""
    here = [model for model in store.list() if model.here_bytes == model.total_bytes and model.kind != "peers"]
    for model in sorted(here, key=lambda model: model.total_bytes):
        if model.total_bytes > largest:
            break
        if model.ref in without:
            continue
        try:
            if open_model(model.ref, store, None, offline=True).manifest.vocab_size == target.vocab_size and (
                same_vocabulary(load_tokenizer(model.ref, store, offline=True), tokenizer)
            ):
                return model.ref
        except ModelError:
            continue  # damaged, or of a kind that cannot be run: no reason not to use the target
    return None


def _nbytes(manifest: Manifest) -> int:
    return sum(tensor.nbytes for tensor in manifest.tensors)
