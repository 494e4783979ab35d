"""Which drafter is found when nobody names one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from draft.across import AcrossDrafter
from draft.base import ROOT, DraftStep
from draft.find import Found, find_drafter
from draft.lm import LmDrafter
from swarm.base.errors import ModelError, UsageError
from swarm.base.events import Event, Notice, silent
from swarm.client.drafters import load_drafters
from swarm.model.files.checkpoint import open_model
from swarm.model.files.manifest import Manifest
from swarm.model.files.store import DEFAULT_MODEL, ModelStore, StoredModel
from swarm.model.sampler import Sampling
from tests.draft.test_across import byte_level
from tests.draft.tiny import save_tiny, tiny_tokenizer
from tests.swarm.model.mtp_models import save_with_head
from tests.swarm.stage.test_eagle import save_eagle


class Shelf(ModelStore):
    """A store that also lists folders, each here as a whole."""

    def __init__(self, root: Path, folders: list[Path]) -> None:
        super().__init__(root)
        self.folders = folders

    def list(self) -> list[StoredModel]:
        sizes = [sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) for folder in self.folders]
        return [StoredModel(str(f), f, "hub", n, n) for f, n in zip(self.folders, sizes, strict=True)]


def saved(folder: Path, layers: int = 1, vocab: int = 258) -> Path:
    save_tiny(folder, layers=layers, vocab=vocab)
    (tiny_tokenizer() if vocab == 258 else byte_level(vocab)).save_pretrained(folder)
    return folder


def heavier(manifest: Manifest, times: int) -> Manifest:
    """The same manifest as if its tensors were so many times as large."""
    return replace(manifest, tensors=tuple(replace(t, nbytes=times * t.nbytes) for t in manifest.tensors))


def test_the_order_of_what_is_found(tmp_path: Path) -> None:
    """Beside the model, then a smaller one of its tokenizer, then the default one; nothing larger than half of it."""
    target, small, other = (
        saved(tmp_path / name, n, v) for name, n, v in (("t", 4, 258), ("s", 1, 258), ("o", 1, 300))
    )
    store = Shelf(tmp_path / "store", [target, other])
    manifest, tokenizer = open_model(str(target), store).manifest, tiny_tokenizer()
    assert find_drafter(manifest, tokenizer, store, target) is None  # a tiny target: the default model is far larger
    huge = heavier(manifest, 100_000)
    assert (
        find_drafter(huge, tokenizer, Shelf(tmp_path / "store", [other]), target) is None
    )  # nothing is fetched unasked
    shelf = Shelf(tmp_path / "store", [other])
    shelf.path = lambda ref: other  # type: ignore[method-assign]  # as if it had been pulled
    found = find_drafter(huge, tokenizer, shelf, target)
    assert found is not None and found.ref == DEFAULT_MODEL
    found = find_drafter(huge, tokenizer, Shelf(tmp_path / "store", [other, small]), target)
    assert found is not None and found.ref == str(small)
    (target / "drafter").mkdir()
    saved(target / "drafter", 1, 300)
    found = find_drafter(huge, tokenizer, Shelf(tmp_path / "store", [small]), target)
    assert found is not None and found.ref == str(target / "drafter")


def test_what_is_found_is_loaded_and_drafts(tmp_path: Path) -> None:
    """A drafter of the same tokenizer drafts as it is, one of another across; the reason is told in one line."""
    target, same, other = (saved(tmp_path / name, n, v) for name, n, v in (("t", 3, 258), ("s", 1, 258), ("o", 1, 300)))
    store = ModelStore(tmp_path / "store")
    checkpoint, tokenizer = open_model(str(target), store), tiny_tokenizer()
    prompt = tokenizer.encode("the list", add_special_tokens=False)
    for ref, kind, told in ((same, LmDrafter, "s drafts: as asked"), (other, AcrossDrafter, "o drafts, across vocabu")):
        drafters = load_drafters("auto", str(ref), None, checkpoint, tokenizer, store, silent, frozenset({1}))
        assert isinstance(drafters.lm, kind) and drafters.why.startswith(told)
        drafters.lm.begin(prompt, Sampling())
        (expansion,) = drafters.lm.step(DraftStep((), (), (), (ROOT,), 1, 4))
        assert expansion.levels and all(0 <= child.token < 258 for child in expansion.levels[0])
    assert load_drafters("auto", None, None, checkpoint, tokenizer, store, silent).lm is None
    with pytest.raises(UsageError, match="give --draft-model REF"):
        load_drafters("lm", None, None, checkpoint, tokenizer, store, silent)


def test_a_drafter_that_cannot_be_had_is_told_of_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by itself, a drafter is a gift: without it earlier text drafts. One that was asked for must be there."""
    target, broken = saved(tmp_path / "t", 3), saved(tmp_path / "b", 1)
    (broken / "model.safetensors").unlink()
    store, told = ModelStore(tmp_path / "store"), list[Event]()
    checkpoint, tokenizer = open_model(str(target), store), tiny_tokenizer()
    monkeypatch.setattr("swarm.client.drafters.find_drafter", lambda *_: Found(str(broken), "for a test"))
    drafters = load_drafters("auto", None, None, checkpoint, tokenizer, store, told.append)
    assert drafters.lm is None and drafters.why.startswith("earlier text alone drafts")
    assert any(isinstance(event, Notice) and f"not drafting with {broken}" in event.text for event in told)
    for choice, ref in (("lm", None), ("auto", str(broken))):
        with pytest.raises(ModelError, match=r"neither model\.safetensors"):
            load_drafters(choice, ref, None, checkpoint, tokenizer, store, silent)


def test_a_checkpoint_with_a_head_of_its_own_needs_no_other_drafter(tmp_path: Path) -> None:
    """It drafts at the tail; only what was made for the model goes beside it. One asked for is looked for."""
    save_with_head("glm4_moe", tmp_path / "t")
    small = saved(tmp_path / "s", 1)
    store = Shelf(tmp_path / "store", [small])
    checkpoint, tokenizer = open_model(str(tmp_path / "t"), store), tiny_tokenizer()
    found = load_drafters("auto", None, None, checkpoint, tokenizer, store, silent, beside=tmp_path / "t")
    assert found.lm is None and found.why.startswith("the checkpoint's own MTP head drafts at the tail")
    with pytest.raises(UsageError, match="give --draft-model REF"):
        load_drafters("lm", None, None, checkpoint, tokenizer, store, silent)
    both = load_drafters("auto", str(small), None, checkpoint, tokenizer, store, silent, frozenset({1}))
    assert both.lm is not None and both.why.endswith("beside it the checkpoint's own MTP head drafts at the tail")


def test_an_eagle_head_beside_the_model_drafts_at_the_tail(tmp_path: Path) -> None:
    """One that cannot be computed there is told of, and is no reason not to draft otherwise."""
    target, told = saved(tmp_path / "t", 3), list[Event]()
    store = ModelStore(tmp_path / "store")
    checkpoint, tokenizer = open_model(str(target), store), tiny_tokenizer()
    save_eagle(target / "drafter")
    found = load_drafters("auto", None, None, checkpoint, tokenizer, store, silent, beside=target)
    assert found.at_tail and found.lm is None
    assert found.why == "the EAGLE head beside the model drafts at the tail"
    shutil.rmtree(target / "drafter")
    save_eagle(target / "drafter", lambda tensors: tensors.update({"midlayer.norm.weight": torch.zeros(4)}))
    found = load_drafters("suffix", None, None, checkpoint, tokenizer, store, silent, beside=target)
    assert not found.at_tail
    found = load_drafters("auto", None, None, checkpoint, tokenizer, store, told.append, beside=target)
    assert not found.at_tail and found.lm is None
    assert any(isinstance(event, Notice) and "rows behind layers 1 to 2" in event.text for event in told)
