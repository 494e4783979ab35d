"""Rings with drafters that were distilled for their model: the text is the model's, and they are right more often than
drafters of the same kind that have learned nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from draft.card import Origin
from draft.chat import Script
from draft.collect import play
from draft.recipe import Source
from draft.student import whole_model
from draft.tapped_folder import TappedDrafter, load_tapped, read_tapped
from draft.tapped_recipe import TappedRecipe
from draft.train import endless
from swarm.base.events import silent
from swarm.model.files.checkpoint import open_model
from swarm.model.files.store import ModelStore
from swarm.run.api import RunRequest
from swarm.run.controller import Controller
from swarm.run.engine import Drafting
from tests.ring.conftest import reference
from tests.ring.test_ring import generate, prompts
from tests.ring.test_taps import CUTS


class Alone:
    """Drafting by one drafter that reads rows, and nothing else."""

    def __init__(self, lm: TappedDrafter) -> None:
        self.lm = lm

    def make(self, request: RunRequest) -> Drafting:
        return Drafting(self.lm.name, deferred=self.lm.another())

    def give_back(self, drafting: Drafting) -> None:
        """They are made anew."""


def distilled(folder: Path, place: Path, kind: str, steps: int) -> TappedDrafter:
    """A drafter after so many steps on what the ring will say, read from the files that were written."""
    target = open_model(str(folder), ModelStore(place / "models"))
    model = whole_model(target, torch.device("cpu"), torch.float32)
    scripts = [Script(prompt, 0.0, -1, (), "chat", "test", True) for prompt in prompts(3, seed=4)]
    samples = play(model, scripts, frozenset(), 40, 1)
    source = Source(model, target, samples)
    recipe = TappedRecipe(kind, 1, 3, 0, 5e-3)
    trainer = recipe.trainer(source, recipe.choose(source, (), silent))
    feed = endless(lambda: [samples], 600, random.Random(0))
    for step in range(steps):
        trainer.step(next(feed), step / steps)
    scores = recipe.settle(trainer, samples)
    recipe.write(place / kind, trainer, Origin("tiny", "00", (1,), "a test", 0, 0, 0, 0.0), scores)
    found = read_tapped(place / kind, target.manifest.n_layers)
    assert found is not None
    return load_tapped(found, target, torch.float32, 512)


@pytest.mark.parametrize("kind", ["eagle3", "dspark", "medusa"])
async def test_a_distilled_drafter_is_right_more_often_than_one_that_learned_nothing(
    make_ring: Callable[..., Any], tiny_folder: Path, tiny_model: Any, tmp_path: Path, kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Controller, "worth_asking", lambda self, calibration, roots, now: True)
    monkeypatch.setattr(Controller, "worth_step", lambda self, gain: True)
    accepted = []
    async with make_ring(CUTS) as ring:
        for steps in (0, 80):
            drafter = distilled(tiny_folder, tmp_path / str(steps), kind, steps)
            ring.desk.target = replace(ring.desk.target, taps=drafter.layers, hidden=32)
            ring.desk._drafting = Alone(drafter)
            accepted.append(0)
            for prompt in prompts(3, seed=4):
                result = await generate(ring, RunRequest(prompt, max_tokens=32, speculation="tree", draft="auto"))
                assert list(result.token_ids) == reference(tiny_model, prompt, 32)
                assert result.drafter == drafter.name
                accepted[-1] += sum(result.depth_accepted)
    assert accepted[1] > accepted[0] + 15, accepted
