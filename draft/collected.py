"""The text of one target that drafters are trained and measured on, in a folder: made once, for drafters of any kind.

`train` and `held` in it have files of `draft.corpus`, `text.json` says of which target and how long the target spoke.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedModel

from draft import prompts
from draft.chat import Chat, Script
from draft.collect import length_groups, play
from draft.corpus import Sample, load_samples, recorded, save_samples
from swarm.base.clock import TimeSource
from swarm.base.errors import UsageError
from swarm.base.events import Progress, Report

LONGEST_PROMPT = 360


@dataclass(frozen=True)
class TextSettings:
    """How text is collected: sequences that are generated together, most tokens generated for each, and sequences of
    unseen kinds to measure on."""

    batch: int
    new_tokens: int
    held_out: int
    seed: int


@dataclass
class _Spoken:
    """What text.json remembers."""

    digest: str
    collected_s: float = 0.0
    batches: int = 0


class CollectedText:
    """The text in `folder` of the target with manifest `digest`. Raises UsageError when it is another target's."""

    def __init__(
        self, folder: Path, digest: str, chat: Chat, settings: TextSettings, report: Report, clock: TimeSource
    ) -> None:
        self.folder, self.chat, self.settings, self.report, self.clock = folder, chat, settings, report, clock
        self._spoken = self._read(digest)
        (folder / "train").mkdir(parents=True, exist_ok=True)
        (folder / "held").mkdir(exist_ok=True)

    @property
    def seconds(self) -> float:
        """How long the target spoke, over all runs."""
        return self._spoken.collected_s

    @property
    def batches(self) -> int:
        return self._spoken.batches

    @property
    def files(self) -> list[Path]:
        """What is trained on."""
        return sorted((self.folder / "train").glob("*.safetensors"))

    def samples(self) -> list[Sample]:
        """All that is trained on."""
        return [sample for file in self.files for sample in load_samples(file)]

    def held(self, model: PreTrainedModel) -> list[Sample]:
        """What is measured on; made when it is asked for first."""
        settings = self.settings
        size = min(settings.batch, settings.held_out)
        rng = random.Random(77)
        found = sorted((self.folder / "held").glob("*.safetensors"))
        if not found:
            scripts = [self.chat.script(prompts.held_out(rng), rng) for _ in range(settings.held_out)]
            for i, group in enumerate(length_groups(scripts, size, rng)):
                save_samples(self._file("held", i), self._play(model, group, 10_000 + i))
                done = min((i + 1) * size, settings.held_out)
                self.report(Progress("distil", "held-out text", done, settings.held_out, "sequences"))
            found = sorted((self.folder / "held").glob("*.safetensors"))
        return [sample for file in found for sample in load_samples(file)]

    def collect(self, model: PreTrainedModel, seconds: float) -> None:
        """Let the target speak until so many seconds were spent on it, over all runs."""
        spoken, settings = self._spoken, self.settings
        while spoken.collected_s < seconds or not spoken.batches:
            rng = random.Random(f"{settings.seed}/{spoken.batches}")
            scripts = [self.chat.script(prompts.draw(rng), rng) for _ in range(settings.batch * 4)]
            short = [script for script in scripts if len(script.prompt) <= LONGEST_PROMPT]
            for group in length_groups(short, settings.batch, rng):
                start = self.clock.now()
                samples = self._play(model, group, settings.seed * 1000 + spoken.batches)
                save_samples(self._file("train", spoken.batches), samples)
                spoken.batches += 1
                spoken.collected_s += self.clock.now() - start
                self._save()
                done, said = min(int(spoken.collected_s), int(seconds)), f"{recorded(samples)} positions more"
                self.report(Progress("distil", "collecting", done, int(seconds), "seconds", said))
                if spoken.collected_s >= seconds:
                    break

    def _play(self, model: PreTrainedModel, group: Sequence[Script], seed: int) -> list[Sample]:
        return play(model, group, self.chat.ends, self.settings.new_tokens, seed)

    def _file(self, kind: str, number: int) -> Path:
        return self.folder / kind / f"{number:05d}.safetensors"

    def _read(self, digest: str) -> _Spoken:
        file = self.folder / "text.json"
        if not file.exists():
            return _Spoken(digest)
        spoken = _Spoken(**json.loads(file.read_text()))
        if spoken.digest != digest:
            raise UsageError(f"{self.folder} holds text of another target; give an empty folder")
        return spoken

    def _save(self) -> None:
        part = self.folder / "text.part"
        part.write_text(json.dumps(asdict(self._spoken)))
        part.replace(self.folder / "text.json")
