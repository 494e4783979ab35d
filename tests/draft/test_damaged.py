"""A damaged drafter beside a model is named in one line, and the run goes on without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from draft.base import ROOT, Child, DraftNode, DraftStep, children
from draft.lm import LmDrafter
from draft.made_block import EMBEDDING
from swarm.base.errors import ModelError, SwarmError
from swarm.base.events import Event, Notice, silent
from swarm.client.drafters import Drafters, load_drafters
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.model.sampler import Sampling
from tests.draft.tapped import save_eagle3
from tests.draft.test_find import Shelf, saved
from tests.draft.tiny import save_tiny, tiny_tokenizer

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_made(folder: Path, target: Path) -> None:
    """What `swarm draft distill` leaves for a target, of random numbers."""
    save_tiny(folder, layers=1, vocab=258)
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if name != EMBEDDING}, folder / WEIGHTS)
    told = {"target": "t", "target_digest": open_model(str(target), ModelStore(target)).manifest.digest, "layers": [0]}
    rewritten(folder, drafter=told)


def save_tapped(folder: Path, target: Path) -> None:
    save_eagle3(folder, open_model(str(target), ModelStore(target)).config)


FORMS: dict[str, Callable[[Path, Path], Any]] = {
    "made": save_made,
    "tapped": save_tapped,
    "model": lambda folder, _: saved(folder, 1),
}


def rewritten(folder: Path, **fields: Any) -> None:
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def truncated(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) * 2 // 3])


def not_numbers(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if name.endswith("mlp.down_proj.weight"))
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, folder / WEIGHTS)


def other_shapes(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor[..., :-8].contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": truncated,
    "empty": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "gone": lambda folder: (folder / WEIGHTS).unlink(),
    "no json": lambda folder: (folder / CONFIG).write_text('{"model_type": '),
    "a list": lambda folder: (folder / CONFIG).write_text("[1]"),
    "no text": lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe{}"),
    "words for numbers": lambda folder: rewritten(folder, num_attention_heads="many", head_dim=None),
    "no layers": lambda folder: rewritten(folder, num_hidden_layers=-1),
    "other shapes": other_shapes,
    "nan": not_numbers,
}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return saved(tmp_path / "t", 8)


def load(target: Path, told: list[Event], store: ModelStore | None = None) -> Drafters:
    store = store or ModelStore(target.parent / "store")
    checkpoint = open_model(str(target), store)
    return load_drafters("auto", None, None, checkpoint, tiny_tokenizer(), store, told.append, beside=target)


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_one_drafts(form: str, target: Path) -> None:
    FORMS[form](target / "drafter", target)
    told: list[Event] = []
    assert load(target, told).why.startswith("drafter drafts")
    assert not [event for event in told if isinstance(event, Notice) and event.level == "warning"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_one_is_named_and_passed_over(form: str, damage: str, target: Path) -> None:
    FORMS[form](target / "drafter", target)
    DAMAGES[damage](target / "drafter")
    told: list[Event] = []
    found = load(target, told)
    assert found.lm is None and not found.at_tail
    [notice] = [event for event in told if isinstance(event, Notice)]
    assert str(target / "drafter") in notice.text and "\n" not in notice.text and notice.level == "warning"


def test_the_next_best_drafts_in_its_place(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_made(target / "drafter", target)
    truncated(target / "drafter")
    small, told = saved(tmp_path / "small", 1), list[Event]()
    monkeypatch.setattr("draft.find._nbytes", lambda manifest: 1 << 40)
    found = load(target, told, Shelf(tmp_path / "store", [small]))
    assert isinstance(found.lm, LmDrafter) and found.why.startswith("small drafts: the smallest model here")
    assert len([event for event in told if isinstance(event, Notice)]) == 1


def test_one_that_was_asked_for_must_be_whole(target: Path, tmp_path: Path) -> None:
    save_made(tmp_path / "own", target)
    not_numbers(tmp_path / "own")
    store = ModelStore(tmp_path / "store")
    checkpoint = open_model(str(target), store)
    with pytest.raises(SwarmError):
        load_drafters("auto", str(tmp_path / "own"), None, checkpoint, tiny_tokenizer(), store, silent)


def test_numbers_that_go_bad_while_it_drafts_end_the_drafter(target: Path) -> None:
    saved(target / "drafter", 1)
    lm = load(target, []).lm
    assert isinstance(lm, LmDrafter)
    lm.begin((1, 2, 3), Sampling())
    whole = lm.block.forward
    lm.block.forward = lambda jobs: [logits * float("nan") for logits in whole(jobs)]  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="found NaN"):
        lm.step(DraftStep(nodes=(DraftNode(1, ROOT, 4, 3),), expand=(1,)))
    assert children([3, 4], [0.5, 0.0]) == (Child(3, 0.5),)
