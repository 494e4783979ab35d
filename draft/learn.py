"""`swarm draft learn`: the drafter in use goes on learning, from runs that its user made and kept.

Nothing is fetched and no weights of the target are needed but rows of its embedding: what the target says is in the
runs. Every fifth prompt is held out; general text (`draft.general`) is mixed in, and measured on, so that what was
known before is not forgotten. The new drafter is used only where it is better (`draft.own_text.judge`); of several
looks while it learns the best counts. A round that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from draft.asset import Learned, default_drafter, read_made
from draft.card import Origin, write_drafter
from draft.corpus import Batch, Sample, recorded
from draft.find import beside_drafter
from draft.general import GeneralText, in_its_own_words, prompts_text, read_general
from draft.learned import learned_drafter, origin_of, put_in_use
from draft.made_student import MadeStudent, take_up
from draft.own_text import judge, roles, samples_of
from draft.recorded_run import RecordedRun
from draft.run_shelf import RunShelf
from draft.train import Score, Trainer, endless, evaluate
from draft.trainer_state import load_state, save_state
from swarm.base.clock import SystemTime, TimeSource
from swarm.base.errors import UsageError
from swarm.base.events import Notice, Progress, Report, silent
from swarm.base.files import write_whole
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.text.tokenizer import Tokenizer

LEAST_PROMPTS, LEAST_HELD_PROMPTS, LEAST_HELD = 8, 2, 64
"""Different prompts at all, and of those held out; positions of these."""
_LOOK = ".look-"


@dataclass(frozen=True)
class LearnSettings:
    """minutes     of training, wall clock; measuring is not counted
    rate           of learning at its highest
    step_tokens    input tokens of one update
    own_share      of updates that are made on the user's runs; the rest on general text
    looks          how often the drafter in the making is measured
    gain, bound    of first choice: what it must gain on held-out runs, and may lose of general text
    """

    minutes: float = 10.0
    rate: float = 2e-4
    step_tokens: int = 1024
    own_share: float = 0.6
    looks: int = 3
    gain: float = 0.005
    bound: float = 0.01
    seed: int = 1


@dataclass(frozen=True)
class Lesson:
    """What came of a round.

    before, after      on held-out runs: the drafter that was in use, and the new one
    general            on general text: the drafter that it all began from, and the new one
    why_not            why the new one is not used; None: it is, and lies in `folder`
    runs, held         recorded runs, and how many of them are held out
    stopped            before its time: the next round goes on with it
    """

    before: Score
    after: Score
    general: tuple[Score, Score]
    why_not: str | None
    folder: Path | None
    runs: int
    held: int
    stopped: bool = False


@dataclass
class _Round:
    """What the working folder remembers: the drafter that the round began from, and the one that came of it while it
    was under way, by `origin_of`; seconds of training so far; ids that the head scores beyond those of the file."""

    begun_from: str
    came: str = ""
    trained_s: float = 0.0
    extra: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Measure:
    """What drafters are measured on, and how the one in use (`before`) and the one it all began from (`was`) do."""

    held: list[Sample]
    guard: list[Sample]
    before: Score
    was: Score


@dataclass(frozen=True)
class _Candidate:
    score: Score
    general: tuple[Score, Score]
    why_not: str | None
    folder: Path

    @property
    def rank(self) -> tuple[bool, float]:
        """The best of several is used."""
        return self.why_not is None, self.score.first


class Learner:
    """One target's. `target`: its checkpoint, of which the embedding is read; `beside`: where its file or folder lies.

    `out`: where a better drafter is written instead of into the shelf, for --draft-model; None: into the shelf, where
    `--draft auto` finds it. Raises UsageError where there is nothing to learn from or nothing that could.
    """

    def __init__(
        self,
        target: Checkpoint,
        tokenizer: Tokenizer,
        shelf: RunShelf,
        beside: Path | None,
        settings: LearnSettings,
        report: Report = silent,
        out: Path | None = None,
        clock: TimeSource | None = None,
    ) -> None:
        self.target, self.tokenizer, self.shelf, self.settings = target, tokenizer, shelf, settings
        self.report, self.out, self.clock = report, out, clock or SystemTime()
        self.digest = target.manifest.digest
        self.folder = shelf.of(self.digest)
        self.runs = self._runs()
        self.origin = _made_for(target, beside)
        self.in_use = self._in_use()

    def learn(self, stop: threading.Event | None = None, made_by: str = "swarm draft learn") -> Lesson:
        """One round; `stop` ends it early, with what was learned. Raises UsageError and ModelError."""
        with self.shelf.held(self.digest), contextlib.ExitStack() as kept:
            for torn in self.folder.glob(f"{_LOOK}*"):  # of a process that was killed
                shutil.rmtree(torn, ignore_errors=True)
            own, held = self._divided()
            state = self._resumed(own)
            general = self._general([*own, *held])
            before, was = self._measured(self.in_use, held), self._measured(self.origin, general.guard)
            measure = _Measure(held, general.guard, before, was)
            student = take_up(self.in_use, self.target, self._tokens, state.extra)
            trainer = Trainer(student, self.settings.rate, warmup=8, grids=student.grids)
            load_state(self.work / "trainer.safetensors", trainer)
            looks = list[_Candidate]()
            for _ in self._trained(trainer, own, general.mix, state, stop or threading.Event()):
                where = tempfile.TemporaryDirectory(prefix=_LOOK, dir=self.folder)
                looks.append(self._look(trainer, measure, made_by, Path(kept.enter_context(where))))
            return self._end(max(looks, key=lambda look: look.rank), measure, state)

    # What there is

    def _runs(self) -> list[RecordedRun]:
        """Raises UsageError where there are too few."""
        runs = self.shelf.load(self.digest, self.report)
        model = self.target.manifest.model
        how = "swarm generate, chat or serve with --keep-for-learning keep them"
        if not runs:
            raise UsageError(f"expected runs of {model} kept in {self.folder}, found none; {how}")
        if (prompts := len({run.prompt_key for run in runs})) < LEAST_PROMPTS:
            raise UsageError(
                f"expected runs of at least {LEAST_PROMPTS} different prompts for {model}, found {prompts}; {how}"
            )
        return runs

    def _in_use(self) -> Path:
        """The drafter to go on from: the one that learned before, or else the one that was made."""
        try:
            learned = learned_drafter(self.folder, self.digest, self.origin)
        except UsageError as error:
            self.report(Notice(f"learning anew from {self.origin}: {error}", "warning"))
            return self.origin
        return self.origin if learned is None else learned.path

    @property
    def work(self) -> Path:
        """Of a round under way."""
        return self.folder / "work"

    def _divided(self) -> tuple[list[Sample], list[Sample]]:
        """What is trained on and what is held out. Raises UsageError where that is too little."""
        file = self.folder / "roles.json"
        known: dict[str, bool] = {}
        with contextlib.suppress(OSError, ValueError):
            told = json.loads(file.read_bytes())
            known = {str(key): bool(value) for key, value in told.items()} if isinstance(told, dict) else {}
        self.held_out = roles(known, [run.prompt_key for run in self.runs])
        with contextlib.suppress(OSError):
            write_whole(file, json.dumps(self.held_out).encode())
        parts: tuple[list[Sample], list[Sample]] = [], []
        for run in self.runs:
            parts[self.held_out[run.prompt_key]].extend(samples_of(run))
        if sum(self.held_out.values()) < LEAST_HELD_PROMPTS or recorded(parts[1]) < LEAST_HELD:
            raise UsageError(
                f"expected at least {LEAST_HELD} tokens said to {LEAST_HELD_PROMPTS} prompts that are held out, found "
                f"{recorded(parts[1])}; keep more runs with --keep-for-learning"
            )
        return parts

    def _resumed(self, own: Sequence[Sample]) -> _Round:
        """The round that was stopped, if it is of this drafter; else a new one."""
        begun_from = origin_of(self.in_use)
        with contextlib.suppress(OSError, ValueError, TypeError):
            state = _Round(**json.loads((self.work / "round.json").read_bytes()))
            if begun_from in (state.begun_from, state.came) and state.trained_s < self.settings.minutes * 60:
                self.report(Notice(f"going on with a round of {state.trained_s / 60:.1f} min"))
                return state
        shutil.rmtree(self.work, ignore_errors=True)
        said = {token for sample in own for token in sample.ids[:, 0].tolist()}
        return _Round(begun_from, extra=sorted(said))

    # Training

    def _trained(
        self, trainer: Trainer, own: list[Sample], mix: list[Sample], state: _Round, stop: threading.Event
    ) -> Iterator[None]:
        """Train, and yield whenever it is time to look: at the end in any case."""
        settings, seconds = self.settings, self.settings.minutes * 60
        rng = random.Random(settings.seed + trainer.steps)
        feeds = [endless(lambda t=text: [t], settings.step_tokens, rng) for text in (mix, own)]  # type: ignore[misc]
        looks, loss = 1 + int(state.trained_s / seconds * settings.looks), 0.0
        while state.trained_s < seconds and not stop.is_set():
            batch: Batch = next(feeds[rng.random() < settings.own_share])
            start = self.clock.now()
            now = trainer.step(batch, state.trained_s / seconds)
            state.trained_s += self.clock.now() - start
            loss = now if not loss else 0.9 * loss + 0.1 * now
            spent = min(int(state.trained_s), int(seconds))
            self.report(Progress("learn", "learning", spent, int(seconds), "seconds", f"loss {loss:.3f}"))
            if looks < settings.looks and state.trained_s >= seconds * looks / settings.looks:
                looks += 1
                self._keep(trainer, state)
                yield
        self._keep(trainer, state)
        yield

    def _keep(self, trainer: Trainer, state: _Round) -> None:
        """Write down how far it came. A full disk costs that and no more."""
        try:
            self.work.mkdir(mode=0o700, exist_ok=True)
            save_state(self.work / "trainer.safetensors", trainer)
            (self.work / "trainer.safetensors").chmod(0o600)
            write_whole(self.work / "round.json", json.dumps(asdict(state)).encode())
        except Exception as error:  # safetensors has errors of its own for a full disk
            self.report(Notice(f"a stopped round could not go on: cannot write {self.work}: {error}", "warning"))

    # Measuring

    def _general(self, own: Sequence[Sample]) -> GeneralText:
        """What is not to be forgotten; and which tokens occur at all."""
        found = read_general(self.origin)
        general = found or prompts_text(self.tokenizer)
        texts = (*own, *general.mix, *general.guard)
        self._tokens = sorted({token for sample in texts for token in sample.tokens.tolist()})
        if found is not None:
            return found
        return replace(general, mix=in_its_own_words(take_up(self.in_use, self.target, self._tokens), general.mix))

    def _measured(self, folder: Path, samples: list[Sample]) -> Score:
        return evaluate(take_up(folder, self.target, self._tokens), samples)["all"]

    def _look(self, trainer: Trainer, measure: _Measure, made_by: str, where: Path) -> _Candidate:
        """Measure what would be stored, as it would be stored."""
        self._write(where, trainer, measure, None, made_by)
        stored = take_up(where, self.target, self._tokens)
        score, now = evaluate(stored, measure.held)["all"], evaluate(stored, measure.guard)["all"]
        settings, general = self.settings, (measure.was, now)
        why_not = judge(measure.before, score, general, settings.gain, settings.bound)
        if why_not is None:
            self._write(where, trainer, measure, score, made_by)
        return _Candidate(score, general, why_not, where)

    def _write(self, folder: Path, trainer: Trainer, measure: _Measure, score: Score | None, made_by: str) -> None:
        student, made = trainer.student, read_made(self.in_use)
        assert isinstance(student, MadeStudent) and made is not None
        trained = [run for run in self.runs if not self.held_out[run.prompt_key]]
        earlier = 0 if made.learned is None else made.learned.runs
        origin = Origin(
            target=made.target,
            target_digest=self.digest,
            layers=made.layers,
            made=made_by,
            sequences=len(trained),
            positions=sum(run.answered for run in trained),
            trained=trainer.positions,
            minutes=self.settings.minutes,
            learned=Learned(max(earlier, len(trained)), origin_of(self.origin)),
        )
        weights = {f"{student.prefix}.{name}": value.detach() for name, value in student.trained()}
        grids = {f"{student.prefix}.{name}": grid for name, grid in student.grids.items()}
        head = student.head_tokens if len(student.head_tokens) < student.vocabulary else None
        scores = {"before": {"own": measure.before}} | ({} if score is None else {"after": {"own": score}})
        write_drafter(folder, made.config, weights, head, origin, scores, student.dtype, grids)

    def _end(self, best: _Candidate, measure: _Measure, state: _Round) -> Lesson:
        """Use it, where it is better."""
        folder = None
        if best.why_not is None:
            try:
                folder = self._put(best.folder)
            except OSError as error:
                raise UsageError(f"cannot write the drafter: {error.strerror or error}; free space") from error
            state.came = origin_of(folder)
        stopped = state.trained_s < self.settings.minutes * 60
        if stopped:
            with contextlib.suppress(OSError):
                write_whole(self.work / "round.json", json.dumps(asdict(state)).encode())
        else:
            shutil.rmtree(self.work, ignore_errors=True)
        held = sum(self.held_out[run.prompt_key] for run in self.runs)
        return Lesson(measure.before, best.score, best.general, best.why_not, folder, len(self.runs), held, stopped)

    def _put(self, made: Path) -> Path:
        """Raises OSError."""
        if self.out is None:
            return put_in_use(self.folder, lambda folder: _copied(made, folder))
        self.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        _copied(made, self.out)
        return self.out


def _copied(made: Path, folder: Path) -> None:
    """The weights last: a folder without them is passed over by name."""
    for name in ("README.md", "config.json", "model.safetensors"):
        shutil.copyfile(made / name, folder / name)
        (folder / name).chmod(0o600)


def _made_for(target: Checkpoint, beside: Path | None) -> Path:
    """The drafter of layers that was made for a target. Raises UsageError where there is none."""
    model = target.manifest.model
    make = f"make one: swarm draft distill --target {model} --out DIR, and put it beside the model as `drafter`"
    if beside is not None and (lies := beside_drafter(beside)) is not None:
        if read_made(lies) is None:
            raise UsageError(
                f"expected a drafter made of layers beside {model}, found another kind in {lies}, which does not "
                f"learn; {make}"
            )
        return lies
    found = default_drafter(target.manifest)
    if found is None:
        raise UsageError(f"expected a drafter that was made for {model}, found none; {make}")
    return found
