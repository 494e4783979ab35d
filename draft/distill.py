"""Making a drafter for a target that has none: `swarm draft distill`.

Four steps, each resumable from the output folder: the target speaks (held-out kinds first), layers and head tokens
are picked, the student is trained, and the drafter is written with its numbers. A run that was stopped goes on where
it was when it is started again with the same output folder; a longer `minutes` then simply goes on.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from draft import prompts
from draft.card import Origin, write_drafter
from draft.chat import Chat
from draft.collect import length_groups, play
from draft.corpus import Sample, load_samples, recorded, save_samples
from draft.general import write_general
from draft.pick import pick_head, pick_layers
from draft.student import Student, short_config, whole_model
from draft.train import Score, Trainer, endless, evaluate, round_int8
from draft.trainer_state import load_state, save_state
from swarm.base.clock import SystemTime, TimeSource
from swarm.base.errors import UsageError
from swarm.base.events import Notice, Progress, Report, silent
from swarm.model.files.checkpoint import Checkpoint, end_tokens, open_model, transformers_tokenizer
from swarm.model.files.store import ModelStore

DTYPES = ("int8", "q4_1", "bfloat16")


@dataclass(frozen=True)
class DistillSettings:
    """What a run may take and makes.

    layers        how many layers the drafter has, or which
    minutes       wall clock for collecting and training, picking and measuring not counted
    collect_share of the minutes that the target speaks
    batch         sequences that are generated together
    new_tokens    most tokens generated per sequence
    step_tokens   input tokens of one update
    head          token ids that the drafter scores; 0: all. Fewer are faster and cover less
    held_out      sequences of unseen kinds to measure on
    dtype         of the weights written: "int8", "bfloat16", or "q4_1": four bits, of which twice as many layers are
                  read in the time and take the bytes
    """

    layers: int | tuple[int, ...] = 11
    minutes: float = 60.0
    collect_share: float = 0.35
    batch: int = 64
    new_tokens: int = 256
    step_tokens: int = 2560
    rate: float = 1e-3
    head: int = 24576
    held_out: int = 192
    seed: int = 1
    dtype: str = "int8"

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.batch < 1 or self.dtype not in DTYPES:
            raise UsageError(f"distilling needs minutes above 0, a batch of at least 1 and dtype {' or '.join(DTYPES)}")


def distill(
    ref: str,
    out: Path,
    settings: DistillSettings,
    store: ModelStore,
    device: torch.device,
    report: Report = silent,
    offline: bool = False,
    command: str | None = None,
) -> dict[str, dict[str, Score]]:
    """`swarm draft distill --target REF --out DIR`: make a drafter, or go on with one that was stopped.

    command: what the card says made it, if not the plain command. Returns held-out scores by weights ("float32",
    "int8") and kind of text. Raises UsageError and ModelError.
    """
    if device.type == "cpu":
        report(Notice("distilling on the CPU: an hour gives a useful drafter, a GPU a better one in minutes"))
    target = open_model(ref, store, None, report, offline)
    tokenizer = transformers_tokenizer(store.tokenizer_source(ref, report, offline), ref, report)
    special = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    ends = end_tokens(target, store, ref) | {i for i in special if isinstance(i, int)}
    layers = settings.layers if isinstance(settings.layers, int) else ",".join(map(str, settings.layers))
    made_by = f"swarm draft distill --target {ref} --layers {layers} --minutes {settings.minutes:g}"
    made_by += f" --dtype {settings.dtype}" if settings.dtype != DistillSettings.dtype else ""
    return Distiller(target, tokenizer, ends, out, settings, device, report).run(command or made_by)


@dataclass
class _Progress:
    """What the output folder remembers. Times in seconds."""

    digest: str
    layers: list[int] = field(default_factory=list)
    head_tokens: list[int] = field(default_factory=list)
    collected_s: float = 0.0
    trained_s: float = 0.0
    batches: int = 0


class Distiller:
    """One run over the folder `out`; its working files lie in out/work and may be deleted afterwards.

    clock: how long things take. Raises UsageError when the folder belongs to another target.
    """

    def __init__(
        self,
        target: Checkpoint,
        tokenizer: PreTrainedTokenizerBase,
        ends: frozenset[int],
        out: Path,
        settings: DistillSettings,
        device: torch.device,
        report: Report = silent,
        clock: TimeSource | None = None,
    ) -> None:
        self.target, self.settings, self.out, self.report = target, settings, out, report
        self.clock = clock or SystemTime()
        check_layers(settings.layers, target.manifest.n_layers)
        self.work = out / "work"
        self.chat, self.ends = Chat(tokenizer, ends), ends
        (self.work / "train").mkdir(parents=True, exist_ok=True)
        (self.work / "held").mkdir(exist_ok=True)
        self.state = self._resume()
        self.device = device
        self.model = whole_model(target, device, torch.bfloat16 if device.type == "cuda" else _cpu_dtype())

    def run(self, made_by: str) -> dict[str, dict[str, Score]]:
        """All steps; returns the scores of the trained and of the stored weights by kind of text."""
        settings = self.settings
        held = self._held()
        self._collect(settings.minutes * 60 * settings.collect_share)
        if not self.state.layers:
            self._pick()
        student = Student(self.model, self.state.layers, torch.tensor(self.state.head_tokens))
        student.refine(lambda name: self.target.read(name, torch.float32))
        trainer = Trainer(student, settings.rate, four_bits=settings.dtype == "q4_1")
        load_state(self.work / "student.safetensors", trainer)
        self._train(trainer, settings.minutes * 60 * (1 - settings.collect_share))
        scores = {"q4_1" if settings.dtype == "q4_1" else "float32": evaluate(student, held)}
        if settings.dtype == "int8":
            round_int8(student)
            scores["int8"] = evaluate(student, held)
        self._write(trainer, scores, made_by)
        return scores

    def _resume(self) -> _Progress:
        file = self.work / "progress.json"
        digest = self.target.manifest.digest
        if not file.exists():
            return _Progress(digest)
        state = _Progress(**json.loads(file.read_text()))
        if state.digest != digest:
            raise UsageError(f"{self.out} holds a drafter in the making for another target; give an empty folder")
        self.report(Notice(f"going on in {self.out}: {state.batches} batches, {state.trained_s / 60:.0f} min trained"))
        return state

    def _save(self) -> None:
        part = self.work / "progress.part"
        part.write_text(json.dumps(asdict(self.state)))
        part.replace(self.work / "progress.json")

    def _held(self) -> list[Sample]:
        """Held-out samples, made once."""
        size = min(self.settings.batch, self.settings.held_out)
        rng = random.Random(77)
        found = sorted((self.work / "held").glob("*.safetensors"))
        if not found:
            scripts = [self.chat.script(prompts.held_out(rng), rng) for _ in range(self.settings.held_out)]
            for i, group in enumerate(length_groups(scripts, size, rng)):
                save_samples(self._file("held", i), self._play(group, 10_000 + i))
                done = min((i + 1) * size, self.settings.held_out)
                self.report(Progress("distil", "held-out text", done, self.settings.held_out, "sequences"))
            found = sorted((self.work / "held").glob("*.safetensors"))
        return [sample for file in found for sample in load_samples(file)]

    def _collect(self, seconds: float) -> None:
        """Let the target speak until so many seconds were spent on it, over all runs."""
        state, settings = self.state, self.settings
        while state.collected_s < seconds or not state.batches:
            rng = random.Random(f"{settings.seed}/{state.batches}")
            scripts = [self.chat.script(prompts.draw(rng), rng) for _ in range(settings.batch * 4)]
            for group in length_groups([s for s in scripts if len(s.prompt) <= 360], settings.batch, rng):
                start = self.clock.now()
                samples = self._play(group, settings.seed * 1000 + state.batches)
                save_samples(self._file("train", state.batches), samples)
                state.batches += 1
                state.collected_s += self.clock.now() - start
                self._save()
                self._tell("collecting", state.collected_s, seconds, f"{recorded(samples)} positions more")
                if state.collected_s >= seconds:
                    break

    def _play(self, group: Any, seed: int) -> list[Sample]:
        return play(self.model, group, self.ends, self.settings.new_tokens, seed)

    def _file(self, kind: str, number: int) -> Path:
        return self.work / kind / f"{number:05d}.safetensors"

    def _pick(self) -> None:
        files = sorted((self.work / "train").glob("*.safetensors"))
        samples = [sample for file in files for sample in load_samples(file)]
        wanted = self.settings.layers
        layers = pick_layers(self.model, samples, wanted, self.report) if isinstance(wanted, int) else wanted
        self.state.layers = list(layers)
        self.state.head_tokens = pick_head(samples, self.target.manifest.vocab_size, self.settings.head).tolist()
        self.report(Notice(f"layers kept: {', '.join(map(str, layers))}"))
        self._save()

    def _train(self, trainer: Trainer, seconds: float) -> None:
        rng = random.Random(self.settings.seed + trainer.steps)
        files = sorted((self.work / "train").glob("*.safetensors"))

        def load() -> Any:
            rng.shuffle(files)
            for i in range(0, len(files), 6):  # a few files at a time mix well and fit memory
                yield [sample for file in files[i : i + 6] for sample in load_samples(file)]

        loss, saved = 0.0, self.clock.now()
        for batch in endless(load, self.settings.step_tokens, rng):
            if self.state.trained_s >= seconds:
                break
            start = self.clock.now()
            now = trainer.step(batch, self.state.trained_s / seconds)
            loss = now if not loss else 0.97 * loss + 0.03 * now
            self.state.trained_s += self.clock.now() - start
            said = f"KL {loss:.3f} after {trainer.positions} positions"
            self._tell("training", self.state.trained_s, seconds, said)
            if self.clock.now() - saved > 60:
                self._keep(trainer)
                saved = self.clock.now()
        self._keep(trainer)

    def _tell(self, what: str, spent: float, seconds: float, detail: str) -> None:
        """Seconds spent of those allowed."""
        self.report(Progress("distil", what, min(int(spent), int(seconds)), int(seconds), "seconds", detail))

    def _keep(self, trainer: Trainer) -> None:
        save_state(self.work / "student.safetensors", trainer)
        self._save()

    def _write(self, trainer: Trainer, scores: dict[str, dict[str, Score]], made_by: str) -> None:
        manifest, student = self.target.manifest, trainer.student
        files = sorted((self.work / "train").glob("*.safetensors"))
        samples = [sample for file in files for sample in load_samples(file)]
        origin = Origin(
            target=manifest.model.lower().rsplit("/", 1)[-1],
            target_digest=manifest.digest,
            layers=student.layers,
            made=made_by,
            sequences=len(samples),
            positions=recorded(samples),
            trained=trainer.positions,
            minutes=(self.state.collected_s + self.state.trained_s) / 60,
        )
        prefix = self.model.base_model_prefix
        weights = {f"{prefix}.{name}": value.detach().cpu() for name, value in student.trained()}
        head = student.head_tokens.cpu() if len(student.head_tokens) < manifest.vocab_size else None
        config = short_config(self.target.config, student.layers).to_dict()
        grids = {f"{prefix}.{name}": grid for name, grid in trainer.grids.items()}
        size = write_drafter(self.out, config, weights, head, origin, scores, self.settings.dtype, grids)
        write_general(self.out, samples, self._held())
        self.report(Notice(f"drafter written to {self.out} ({size / 1e6:.1f} MB)"))


def check_layers(wanted: int | tuple[int, ...], total: int) -> None:
    """Raises UsageError for layers that the target does not have; asked before hours of work."""
    layers = tuple(range(wanted)) if isinstance(wanted, int) else wanted
    if not layers or list(layers) != sorted(set(layers)) or layers[-1] >= total:
        raise UsageError(f"--layers must be 1 to {total}, or layers of 0 to {total - 1} in order; found {wanted}")


def _cpu_dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
