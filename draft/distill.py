"""Making a drafter for a target that has none: `swarm draft distill`.

Four steps, each resumable from the output folder: the target speaks (held-out kinds first), head tokens and layers are
picked, the student is trained, and the drafter is written with its numbers. A run that was stopped goes on where it was
when it is started again with the same output folder; a longer `minutes` then simply goes on. What differs between kinds
of drafters is their recipe (`draft.recipe`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from draft.card import Origin
from draft.chat import Chat
from draft.collected import CollectedText, TextSettings
from draft.corpus import load_samples, recorded
from draft.general import write_general
from draft.layers_recipe import LayersRecipe
from draft.recipe import Recipe, Scores, Selection, Source
from draft.student import whole_model
from draft.tapped_recipe import TAPPED, TappedRecipe
from draft.train import Feed, Trainer
from draft.trainer_state import load_state, save_state
from swarm.base.clock import SystemTime, TimeSource
from swarm.base.errors import UsageError
from swarm.base.events import Notice, Progress, Report, silent
from swarm.model.files.checkpoint import Checkpoint, end_tokens, open_model, transformers_tokenizer
from swarm.model.files.store import ModelStore

KINDS = ("layers", *TAPPED)
USUAL_LAYERS = 11
DTYPES = ("auto", "int8", "q4_1", "bfloat16")


@dataclass(frozen=True)
class DistillSettings:
    """What a run may take and makes.

    kind          of drafter, one of `KINDS`
    layers        how many layers the drafter has (kind medusa: blocks of a head), or (kind layers) which of the
                  target's; None: as usual for its kind
    ahead         tokens that it learns to draft ahead; None: as usual for its kind, and for kind layers 1
    minutes       wall clock for collecting and training, picking and measuring not counted
    collect_share of the minutes that the target speaks
    batch         sequences that are generated together
    new_tokens    most tokens generated per sequence
    step_tokens   input tokens of one update
    rate          highest learning rate; None: as usual for its kind
    head          token ids that the drafter scores; 0: all. Fewer are faster and cover less
    held_out      sequences of unseen kinds to measure on
    dtype         of the weights written: "int8", "bfloat16", or "q4_1": four bits, of which twice as many layers are
                  read in the time and take the bytes. "auto": int8 for kind layers, bfloat16 for others, whose form
                  has no other
    """

    kind: str = "layers"
    layers: int | tuple[int, ...] | None = None
    ahead: int | None = None
    minutes: float = 60.0
    collect_share: float = 0.35
    batch: int = 64
    new_tokens: int = 256
    step_tokens: int = 2560
    rate: float | None = None
    head: int = 24576
    held_out: int = 192
    seed: int = 1
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"expected a kind of drafter, {', '.join(KINDS)}, found {self.kind!r}")
        if self.minutes <= 0 or self.batch < 1 or self.dtype not in DTYPES:
            raise UsageError(f"distilling needs minutes above 0, a batch of at least 1 and dtype {' or '.join(DTYPES)}")

    @property
    def text(self) -> TextSettings:
        return TextSettings(self.batch, self.new_tokens, self.held_out, self.seed)


def recipe_for(settings: DistillSettings) -> Recipe:
    """How the kind that is asked for is made. Raises UsageError for what does not go with it."""
    layers, kind = settings.layers, settings.kind
    if kind == "layers":
        if settings.ahead not in (None, 1):
            raise UsageError(f"a drafter of kind layers learns the next token alone, found {settings.ahead} ahead")
        dtype = "int8" if settings.dtype == "auto" else settings.dtype
        return LayersRecipe(USUAL_LAYERS if layers is None else layers, settings.head, settings.rate or 1e-3, dtype)
    usual = TAPPED[kind]
    if settings.dtype not in ("auto", "bfloat16"):
        raise UsageError(f"the published form of kind {kind} has bfloat16, found {settings.dtype}: leave --dtype away")
    if layers is not None and not isinstance(layers, int):
        raise UsageError(f"a drafter of kind {kind} has new layers, none of the target's: give how many, not {layers}")
    return TappedRecipe(
        kind,
        usual.layers if layers is None else layers,
        usual.ahead if settings.ahead is None else settings.ahead,
        settings.head,
        settings.rate or usual.rate,
    )


def distill(
    ref: str,
    out: Path,
    settings: DistillSettings,
    store: ModelStore,
    device: torch.device,
    report: Report = silent,
    offline: bool = False,
    command: str | None = None,
    text: Path | None = None,
) -> Scores:
    """`swarm draft distill --target REF --out DIR`: make a drafter, or go on with one that was stopped.

    command: what the card says made it, if not the plain command. text: a folder with text of the target, for drafters
    of several kinds; None: in `out`. Returns held-out scores by weights ("float32", "int8") and kind of text. Raises
    UsageError and ModelError.
    """
    if device.type == "cpu":
        report(Notice("distilling on the CPU: an hour gives a useful drafter, a GPU a better one in minutes"))
    target = open_model(ref, store, None, report, offline)
    tokenizer = transformers_tokenizer(store.tokenizer_source(ref, report, offline), ref, report)
    special = (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    ends = end_tokens(target, store, ref) | {i for i in special if isinstance(i, int)}
    made_by = command or _command(ref, settings)
    return Distiller(target, tokenizer, ends, out, settings, device, report, text=text).run(made_by)


def _command(ref: str, settings: DistillSettings) -> str:
    said = f"swarm draft distill --target {ref}"
    said += f" --kind {settings.kind}" if settings.kind != DistillSettings.kind else ""
    if settings.layers is not None:
        layers = settings.layers if isinstance(settings.layers, int) else ",".join(map(str, settings.layers))
        said += f" --layers {layers}"
    said += f" --ahead {settings.ahead}" if settings.ahead is not None else ""
    said += f" --minutes {settings.minutes:g}"
    return said + (f" --dtype {settings.dtype}" if settings.dtype != DistillSettings.dtype else "")


@dataclass
class _Progress:
    """What the output folder remembers. Times in seconds."""

    digest: str
    kind: str = "layers"
    layers: list[int] = field(default_factory=list)
    head_tokens: list[int] = field(default_factory=list)
    mask: int = -1
    trained_s: float = 0.0


class Distiller:
    """One run over the folder `out`; its working files lie in out/work, where they may be deleted afterwards.

    text: the folder of the collected text, if it is not out/work. clock: how long things take. Raises UsageError when
    the folder belongs to another target or kind.
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
        text: Path | None = None,
    ) -> None:
        self.target, self.settings, self.out, self.report = target, settings, out, report
        self.clock = clock or SystemTime()
        self.recipe = recipe_for(settings)
        self.recipe.check(target.manifest)
        self.work = out / "work"
        self.state = self._resume()
        chat, digest = Chat(tokenizer, ends), target.manifest.digest
        self.text = CollectedText(text or self.work, digest, chat, settings.text, report, self.clock)
        self.work.mkdir(parents=True, exist_ok=True)
        self._special = sorted(set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder))
        self.device = device
        self.model = whole_model(target, device, torch.bfloat16 if device.type == "cuda" else _cpu_dtype())

    def run(self, made_by: str) -> Scores:
        """All steps; returns the scores of the trained and of the stored weights by kind of text."""
        settings, recipe = self.settings, self.recipe
        held = self.text.held(self.model)
        self.text.collect(self.model, settings.minutes * 60 * settings.collect_share)
        if not self.state.head_tokens:
            self._choose()
        first = load_samples(self.text.files[0])
        trainer = recipe.trainer(Source(self.model, self.target, first), self._picked())
        self._train(trainer, settings.minutes * 60 * (1 - settings.collect_share))
        scores = recipe.settle(trainer, held)
        size = recipe.write(self.out, trainer, self._origin(trainer, made_by), scores)
        if recipe.kind == "layers":  # the one that goes on learning
            write_general(self.out, self.text.samples(), held)
        self.report(Notice(f"drafter written to {self.out} ({size / 1e6:.1f} MB)"))
        return scores

    def _resume(self) -> _Progress:
        file = self.work / "progress.json"
        digest, kind = self.target.manifest.digest, self.recipe.kind
        if not file.exists():
            return _Progress(digest, kind)
        try:
            state = _Progress(**json.loads(file.read_text()))
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"expected the notes of a run of this version in {file} ({error}); give an empty folder"
            ) from error
        if state.digest != digest:
            raise UsageError(f"{self.out} holds a drafter in the making for another target; give an empty folder")
        if state.kind != kind:
            raise UsageError(
                f"{self.out} holds a drafter of kind {state.kind} in the making, asked for was {kind}; give another "
                f"--out, with --text {self.work} to train on the same text"
            )
        self.report(Notice(f"going on in {self.out}: {state.trained_s / 60:.0f} min trained"))
        return state

    def _save(self) -> None:
        part = self.work / "progress.part"
        part.write_text(json.dumps(asdict(self.state)))
        part.replace(self.work / "progress.json")

    def _choose(self) -> None:
        source = Source(self.model, self.target, self.text.samples())
        picked = self.recipe.choose(source, self._special, self.report)
        self.state.layers, self.state.head_tokens = list(picked.layers), list(picked.head_tokens)
        self.state.mask = picked.mask
        self._save()

    def _picked(self) -> Selection:
        return Selection(tuple(self.state.layers), tuple(self.state.head_tokens), self.state.mask)

    def _train(self, trainer: Trainer, seconds: float) -> None:
        notes = load_state(self._student, trainer)
        place = (int(notes.get("pass", 0)), int(notes.get("batches", 0)))
        self.state.trained_s = float(notes.get("seconds", 0.0))
        feed = Feed(self.text.files, self.settings.step_tokens, self.settings.seed, place)
        loss, saved = 0.0, self.clock.now()
        batches = iter(feed)
        while self.state.trained_s < seconds:
            start = self.clock.now()
            now = trainer.step(next(batches), self.state.trained_s / seconds)
            loss = now if not loss else 0.97 * loss + 0.03 * now
            self.state.trained_s += self.clock.now() - start
            if self.clock.now() - saved > 60:
                self._keep(trainer, feed)
                saved = self.clock.now()
            spent, said = min(int(self.state.trained_s), int(seconds)), f"loss {loss:.3f} after {trainer.positions}"
            self.report(Progress("distil", "training", spent, int(seconds), "seconds", f"{said} positions"))
        self._keep(trainer, feed)

    @property
    def _student(self) -> Path:
        return self.work / "student.safetensors"

    def _keep(self, trainer: Trainer, feed: Feed) -> None:
        done, taken = feed.place
        notes = {"pass": str(done), "batches": str(taken), "seconds": repr(self.state.trained_s)}
        save_state(self._student, trainer, notes)
        self._save()

    def _origin(self, trainer: Trainer, made_by: str) -> Origin:
        manifest, samples = self.target.manifest, self.text.samples()
        return Origin(
            target=manifest.model.lower().rsplit("/", 1)[-1],
            target_digest=manifest.digest,
            layers=tuple(self.state.layers),
            made=made_by,
            sequences=len(samples),
            positions=recorded(samples),
            trained=trainer.positions,
            minutes=(self.text.seconds + self.state.trained_s) / 60,
        )


def _cpu_dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
