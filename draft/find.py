"""Which model drafts for a target when nobody named one: the first of these that there is.

1. The drafter that learned from this user's own runs (`swarm draft learn`), going on from one of the next two.
2. A drafter beside the target: its folder's `drafter`, or `NAME.drafter` beside `NAME.gguf`.
3. The drafter that ships with this package for the target.
   These three were made for it. Where the target's checkpoint has an MTP head, which drafts at the tail, they draft
   beside it, and nothing of what follows is looked for: the head was trained with the model, and costs nothing here.
4. The smallest model in the store that has the target's tokenizer.
5. The default model, across vocabularies, where it is here (`swarm model pull`; 98 MB). Nothing is fetched unasked: a
   machine without a network would wait for it at every start.

4 and 5 have at most half the target's bytes. Whether drafting pays is measured while a run is under way.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from draft.asset import default_drafter, same_vocabulary
from draft.learned import learned_drafter
from swarm.base.errors import ModelError, UsageError
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
    """A drafter to load: `ref` as `draft.asset.load_drafter` takes it, why this one, and what people call it, where
    that is not the last part of `ref`. `wrong`: why it cannot be loaded, where that is known already."""

    ref: str
    why: str
    called: str = ""
    wrong: str = ""

    @property
    def name(self) -> str:
        """For people: a folder by its last part."""
        return self.called or Path(self.ref).name


def find_drafter(
    target: Manifest,
    tokenizer: Tokenizer,
    store: ModelStore,
    beside: Path | None = None,
    at_tail: bool = False,
    without: AbstractSet[str] = frozenset(),
    learned: Path | None = None,
) -> Found | None:
    """The drafter for a target, None when there is none. `at_tail`: the target's own head drafts there. `without`:
    references of those that were tried and are of no use. `learned`: where what learned for this target lies.

    Fetches nothing. Raises UsageError where what ships is damaged.
    """
    if learned is not None and (own := _learned(learned, target, beside)) is not None and own.ref not in without:
        return own
    if beside is not None and (lies := beside_drafter(beside)) is not None and str(lies) not in without:
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


def _learned(folder: Path, target: Manifest, beside: Path | None) -> Found | None:
    """What learned from the user's runs. A damaged one is found too, so that whoever loads it says what is wrong."""
    try:
        origin = (None if beside is None else beside_drafter(beside)) or default_drafter(target)
        made = learned_drafter(folder, target.digest, origin)
    except UsageError as error:
        return Found(str(folder), "it learned from your own runs", wrong=str(error))
    if made is None or made.learned is None:
        return None
    why = f"learned from {made.learned.runs} runs (swarm draft learn --forget drops it)"
    return Found(str(made.path), why, "your own drafter")


def _is_here(ref: str, store: ModelStore) -> bool:
    try:
        return store.path(ref).exists()
    except ModelError:
        return False


def beside_drafter(path: Path) -> Path | None:
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
