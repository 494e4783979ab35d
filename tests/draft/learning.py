"""A tiny target with a drafter of two of its layers, and runs of it as a requester records them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from draft.card import Origin, write_drafter
from draft.corpus import Sample
from draft.four_bits import Grid
from draft.general import write_general
from draft.learn import Learner, LearnSettings
from draft.made_block import EMBEDDING
from draft.own_text import samples_of
from draft.recorded_run import RecordedRun
from draft.run_shelf import RunShelf
from draft.student import short_config
from swarm.base.events import Event
from swarm.model.files.checkpoint import Checkpoint, open_model
from swarm.model.files.store import ModelStore
from tests.draft.tiny import save_tiny, tiny_tokenizer

LAYERS = (0, 2)
QUICK = LearnSettings(minutes=1.0, rate=3e-3, step_tokens=400, looks=2, bound=1.0)


class Clock:
    """Each look at it costs a second."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        self.seconds += 1.0
        return self.seconds

    wall = now


@dataclass(frozen=True)
class Tiny:
    """Where it lies; the drafter in `folder/drafter`."""

    folder: Path
    model: LlamaForCausalLM
    target: Checkpoint

    def runs(self, prompts: Iterable[Sequence[int]], tokens: int = 24, tops: int = 0) -> list[RecordedRun]:
        """What the target says greedily."""
        return [self._run(list(prompt), tokens, tops) for prompt in prompts]

    @torch.inference_mode()
    def _run(self, prompt: list[int], count: int, tops: int) -> RecordedRun:
        ids, logprobs, top = list(prompt), list[float](), list[torch.return_types.topk]()
        for _ in range(count):
            told = torch.log_softmax(self.model(torch.tensor([ids])).logits[0, -1].float(), -1)
            ids.append(int(told.argmax()))
            logprobs.append(float(told.max()))
            top.append(told.topk(tops))
        return RecordedRun(
            self.target.manifest.digest,
            np.array(ids, np.int32),
            len(prompt),
            True,
            np.array(logprobs, np.float32),
            np.array([t.indices.tolist() for t in top], np.int32).reshape(count, tops),
            np.array([t.values.tolist() for t in top], np.float32).reshape(count, tops),
        )

    def learner(
        self, shelf: RunShelf, told: list[Event], settings: LearnSettings = QUICK, out: Path | None = None
    ) -> Learner:
        return Learner(self.target, tiny_tokenizer(), shelf, self.folder, settings, told.append, out, Clock())


def samples_of_all(runs: Iterable[RecordedRun]) -> list[Sample]:
    return [sample for run in runs for sample in samples_of(run)]


def make_tiny(folder: Path, dtype: str = "q4_1") -> Tiny:
    """A random Llama of three layers, and the first and the last as its drafter."""
    save_tiny(folder, layers=3, vocab=258)
    tiny_tokenizer().save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    target = open_model(str(folder), ModelStore(folder / "store"))
    weights, grids = dict[str, torch.Tensor](), dict[str, Grid]()
    for name, value in model.state_dict().items():
        words = name.split(".")
        if words[1] == "layers" and int(words[2]) in LAYERS:
            words[2] = str(LAYERS.index(int(words[2])))
        elif words[1] == "layers" or name in (EMBEDDING, "lm_head.weight"):
            continue
        weights[".".join(words)] = value
    grids = {n: Grid.of(w) for n, w in weights.items() if w.ndim == 2 and w.shape[1] % 32 == 0}
    origin = Origin("tiny", target.manifest.digest, LAYERS, "a test", 1, 1, 0, 0.0)
    config = short_config(model.config, LAYERS).to_dict()
    write_drafter(folder / "drafter", config, weights, torch.arange(2, 220), origin, {}, dtype, grids)
    tiny = Tiny(folder, model, target)
    mix, guard = (samples_of_all(tiny.runs([[n, 9, n + 1] for n in span])) for span in (range(10, 20), range(30, 38)))
    write_general(folder / "drafter", mix, guard)
    return tiny


def kept(shelf: RunShelf, runs: Iterable[RecordedRun]) -> RunShelf:
    for at, run in enumerate(runs):
        assert shelf.keep(run, 1000.0 + at)
    return shelf
