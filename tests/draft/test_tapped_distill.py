"""Drafters that read the target's rows, distilled: they learn, what is written computes what was trained, and a run
that was stopped ends as if it never had been."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from draft.asset import load_drafter
from draft.base import ROOT, DraftStep
from draft.chat import Script
from draft.collect import play
from draft.corpus import TOP, Sample, collate
from draft.dflash import BlockDrafter
from draft.distill import Distiller, DistillSettings, distill, recipe_for
from draft.eagle3 import Eagle3Drafter
from draft.eagle3_student import sight
from draft.medusa import MedusaDrafter
from draft.recipe import Source
from draft.student import whole_model
from draft.tapped_folder import TappedDrafter
from draft.tapped_recipe import TappedRecipe, student_of
from draft.tapped_student import pick_mask, spread_taps
from draft.taps import at_position
from draft.train import Score, Trainer, endless, evaluate
from swarm.base.errors import UsageError
from swarm.base.events import Event, Progress, Report, silent
from swarm.model.files.checkpoint import Checkpoint, open_model
from swarm.model.files.store import ModelStore
from swarm.model.sampler import Sampling
from tests.draft.tapped import rows_of
from tests.draft.test_distill import CPU, END, Clock
from tests.draft.tiny import save_tiny, tiny_tokenizer

KINDS = ("eagle3", "dflash", "dspark", "medusa")
SMALL = DistillSettings(layers=1, minutes=0.4, batch=4, new_tokens=16, step_tokens=900, head=200, held_out=8)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("target")
    save_tiny(path, layers=5, vocab=258, tied=request.param)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tied")
    save_tiny(path, layers=5, vocab=258)
    tiny_tokenizer().save_pretrained(path)
    return path


def opened(folder: Path) -> Checkpoint:
    return open_model(str(folder), ModelStore(folder / "store"))


def in_steps(folder: Path) -> LlamaForCausalLM:
    """A target that as a rule says the token seven further than the one before."""
    model = save_tiny(folder, layers=5, vocab=258, tied=False)
    model.lm_head.weight.data.copy_(model.get_input_embeddings().weight.roll(7, 0))
    model.save_pretrained(folder)
    return model


def said(model: LlamaForCausalLM, count: int, seed: int) -> list[Sample]:
    """Greedy text behind prompts of three tokens, which follow from the seed."""
    rng = random.Random(seed)
    prompts = [(0, rng.randrange(2, 12), rng.randrange(2, 258)) for _ in range(count)]
    return play(model, [Script(p, 0.0, -1, (), "chat", "test", True) for p in prompts], END, 24, seed)


def made(
    kind: str, folder: Path, samples: Sequence[Sample], layers: int = 1, ahead: int = 3
) -> tuple[TappedRecipe, Trainer]:
    recipe = TappedRecipe(kind, layers, ahead, 200, 5e-3)
    target = opened(folder)
    recipe.check(target.manifest)
    source = Source(whole_model(target, CPU, torch.float32), target, samples)
    return recipe, recipe.trainer(source, recipe.choose(source, (0, 1), silent))


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns_to_draft_ahead_on_text_that_it_never_saw(tmp_path: Path, kind: str) -> None:
    model = in_steps(tmp_path)
    samples, held = said(model, 96, 1), said(model, 24, 2)
    _, trainer = made(kind, tmp_path, samples)
    frozen = {name: value.clone() for name, value in trainer.student.rows._base.named_parameters()}  # type: ignore[attr-defined]
    before = evaluate(trainer.student, held)["chat, greedy"]
    trainer.warmup, feed = 5, endless(lambda: [samples], 600, random.Random(0))
    losses = [trainer.step(next(feed), i / 60) for i in range(60)]
    after = evaluate(trainer.student, held)["chat, greedy"]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert len(after.further) == 2
    for untrained, learned in zip((before, *before.further), (after, *after.further), strict=True):
        assert learned.positions == untrained.positions > 50
        assert learned.first > untrained.first + 0.1, (before, after)
    now = dict(trainer.student.rows._base.named_parameters())  # type: ignore[attr-defined]
    assert all(torch.equal(frozen[name], now[name]) for name in frozen)


def loaded(out: Path, folder: Path) -> TappedDrafter:
    store = ModelStore(folder / "store")
    drafter = load_drafter(str(out), opened(folder), tiny_tokenizer(), store, CPU, dtype=torch.float32)
    assert isinstance(drafter, TappedDrafter)
    return drafter


@pytest.mark.parametrize("head", [200, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_drafts_as_what_was_trained(folder: Path, tmp_path: Path, kind: str, head: int) -> None:
    settings = DistillSettings(
        **{**SMALL.__dict__, "kind": kind, "layers": 2, "ahead": 4, "head": head, "minutes": 0.3}
    )
    run = Distiller(opened(folder), tiny_tokenizer(), END, tmp_path, settings, CPU, silent, Clock())
    run.model = whole_model(run.target, CPU, torch.float32)
    run.recipe = recipe = recipe_for(settings)
    assert isinstance(recipe, TappedRecipe)
    scores = run.run("a test")["bfloat16"]
    assert len(scores["all"].further) == 3
    card = (tmp_path / "README.md").read_text()
    assert (
        "a test" in card
        and f"{scores['all'].further[2].first:.3f}" in card
        and "trained to draft 4 tokens ahead" in card
    )
    # The student of the same state, settled again.
    source = Source(run.model, run.target, run.text.samples()[: settings.batch])
    trainer = recipe.trainer(source, run._picked())
    run._train(trainer, 0.0)
    student = student_of(trainer)
    student.settle()
    drafter = loaded(tmp_path, folder)
    assert type(drafter) is {"eagle3": Eagle3Drafter, "medusa": MedusaDrafter}.get(kind, BlockDrafter)
    for seed in range(3):
        prompt = [random.Random(seed).randrange(258) for _ in range(9)]
        drafter.begin(prompt, Sampling())
        rows = rows_of(run.model, prompt, drafter.layers)
        for position in range(len(prompt) - 1):
            drafter.store.put(at_position(position), rows[position])
        (found,) = drafter.step(DraftStep(expand=(ROOT,), depth=4, width=8))
        chain = [level[0].token for level in found.levels]
        assert len(chain) == 4
        root = len(prompt) - 1
        blank = torch.zeros(4, TOP)
        sample = Sample(torch.tensor([*prompt, *chain]).int(), root, blank.int(), blank.half(), "chat", "test", True)
        for ahead, (at, best) in enumerate(student.choices(collate([sample]))):
            mine = best[at.tolist().index(ahead)].tolist()
            assert mine == [child.token for child in found.levels[ahead]], (seed, ahead)


class Stopped(Exception):
    """What stops a run."""


@pytest.mark.parametrize("kind", ["eagle3", "dspark", "layers"])
def test_a_stopped_run_ends_as_if_it_never_had_been(tied: Path, tmp_path: Path, kind: str) -> None:
    settings = DistillSettings(
        **{**SMALL.__dict__, "kind": kind, "step_tokens": 100, "minutes": 5.0, "collect_share": 0.02}
    )

    def run(out: Path, report: Report = silent) -> dict[str, Score]:
        clock, text = Clock(), tmp_path / "text"
        maker = Distiller(opened(tied), tiny_tokenizer(), END, out, settings, CPU, report, clock, text)
        return dict(maker.run("a test"))["float32" if kind == "layers" else "bfloat16"]  # type: ignore[arg-type]

    whole = run(tmp_path / "whole")
    seen = 0

    def stopping(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, Progress) and event.what == "training"
        if seen == 100:
            raise Stopped

    with pytest.raises(Stopped):
        run(tmp_path / "stopped", stopping)
    files = sorted((tmp_path / "text" / "train").iterdir())
    notes = json.loads((tmp_path / "stopped" / "work" / "progress.json").read_text())
    assert 20 < notes["trained_s"] < 100 and notes["kind"] == kind
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    assert run(tmp_path / "stopped") == whole
    assert sorted((tmp_path / "text" / "train").iterdir()) == files
    both = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("whole", "stopped")]
    assert both[0] == both[1]
    other = DistillSettings(**{**settings.__dict__, "kind": "medusa"})
    with pytest.raises(UsageError, match=f"drafter of kind {kind} in the making, asked for was medusa"):
        Distiller(opened(tied), tiny_tokenizer(), END, tmp_path / "stopped", other, CPU)


def test_what_cannot_be_made_is_refused_by_name_before_any_work(tied: Path, tmp_path: Path) -> None:
    store = ModelStore(tied / "store")
    for settings, why in (
        ({"kind": "eagle3", "dtype": "q4_1"}, "form of kind eagle3 has bfloat16, found q4_1"),
        ({"kind": "dflash", "layers": (0, 2)}, "new layers, none of the target's"),
        ({"kind": "dflash", "layers": 40}, "--layers must be 1 to 32"),
        ({"kind": "medusa", "layers": 9}, "--layers must be 1 to 8 for kind medusa"),
        ({"kind": "medusa", "ahead": 17}, "--ahead must be 1 to 16 for kind medusa"),
        ({"kind": "dspark", "ahead": 1}, "--ahead must be 2 to 64"),
        ({"kind": "layers", "ahead": 3}, "the next token alone"),
    ):
        with pytest.raises(UsageError, match=why):
            distill(str(tied), tmp_path / "d", DistillSettings(**settings), store, CPU)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a kind of drafter, layers, eagle3"):
        DistillSettings("eagle")
    assert not (tmp_path / "d").exists()
    with pytest.raises(UsageError, match="2 layers or more"):
        spread_taps(1, 3)


def test_taps_are_spread_over_the_target_and_distinct() -> None:
    assert spread_taps(30, 5) == (2, 8, 15, 22, 28) and spread_taps(32, 3) == (2, 16, 30)
    for layers in range(2, 40):
        for count in (3, 5):
            found = spread_taps(layers, count)
            assert len(set(found)) == len(found) == min(count, layers - 1)
            assert list(found) == sorted(found) and 1 <= found[0] <= found[-1] < layers


def test_the_mask_is_a_token_that_no_text_has_and_that_is_embedded() -> None:
    table = torch.ones(20, 4)
    table[17:] = 0
    blank = torch.zeros(1, TOP)
    samples = [Sample(torch.arange(14).int(), 12, blank.int(), blank.half(), "chat", "t", True)]
    assert pick_mask(samples, table, (0, 1)) == 16
    assert pick_mask(samples, table, (0, 15, 18)) == 15


def test_a_pass_sees_the_text_before_its_drafts_and_these_alone() -> None:
    seen = sight(6, 2, CPU)
    assert seen[5].nonzero()[:, 0].tolist() == [1, 2, 3, 6 + 4, 12 + 5]
    assert sight(6, 0, CPU)[3].nonzero()[:, 0].tolist() == [1, 2, 3]
    assert bool(seen.any(1).all())
