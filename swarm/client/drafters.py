"""The drafters of a requester: which ones a run uses, made from weights that are loaded once."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from draft.across import AcrossDrafter
from draft.asset import load_drafter
from draft.base import ROOT, DraftNode, DraftStep
from draft.find import Found, find_drafter
from draft.lm import LmDrafter
from draft.suffix import SuffixDrafter
from draft.tapped_folder import TappedDrafter
from draft.taps import ReadsTaps, at_position
from swarm.base.errors import ModelError, SwarmError, UsageError
from swarm.base.events import Notice, Report
from swarm.model.device import choose_device
from swarm.model.eagle_folder import BESIDE, drafter_of, read_eagle
from swarm.model.files.checkpoint import Checkpoint
from swarm.model.files.named import DEFAULT_MODEL
from swarm.model.files.store import ModelStore
from swarm.model.sampler import Sampling
from swarm.model.text.tokenizer import Tokenizer
from swarm.run.api import Draft, RunRequest
from swarm.run.engine import Drafting

GUESSED_STEP_MS = 15.0
WARM_UP_PROMPT = (0,)
LEAVES = (4, 8)
MOST_IDLE = 8
"""Model drafters that wait for a run, each with the keys and values of a context: after a crowd the others go."""
MOST_STEPS, ALIKE = 4, 1.1
WIDE = 1.3
"""Eight leaves are worth this many times the time of four: the second four are far less likely to matter."""

OWN_HEAD = "the checkpoint's own MTP head drafts"
EAGLE = "the EAGLE head beside the model drafts"

ModelDrafter = LmDrafter | AcrossDrafter | TappedDrafter


@dataclass
class Drafters:
    """Makes the drafters of each run. Runs at once need one model drafter each; they share the weights.

    step_ms   measured milliseconds of a draft step of the model drafter for one leaf
    leaves    most leaves of a step
    threads   compute threads of a draft step, on a CPU
    why       what drafts, and why that, in one line
    at_tail   the tail can draft too
    """

    lm: ModelDrafter | None = None
    step_ms: float = GUESSED_STEP_MS
    leaves: int = LEAVES[-1]
    threads: int = 1
    why: str = ""
    at_tail: bool = False
    _idle: list[ModelDrafter] = field(default_factory=list)

    def make(self, request: RunRequest) -> Drafting:
        """Drafters for one run, begun where that is quick."""
        choice = request.draft
        inline = None
        if choice in ("suffix", "auto") and request.speculation != "plain":
            inline = SuffixDrafter()
            inline.begin(request.prompt_ids, request.sampling)
        deferred = None
        if choice in ("lm", "auto") and request.speculation != "plain":
            deferred = self._take() if not (self.taps and request.private) else None
        names = [drafter.name for drafter in (inline, deferred) if drafter is not None]
        return Drafting("+".join(names) or "none", inline, deferred, self.leaves, self.threads)

    @property
    def taps(self) -> tuple[int, ...]:
        """Layers of the target whose rows the model drafter reads."""
        return self.lm.layers if isinstance(self.lm, ReadsTaps) else ()

    def give_back(self, drafting: Drafting) -> None:
        """The run is over: its model drafter may serve the next."""
        if isinstance(drafting.deferred, ModelDrafter) and len(self._idle) < MOST_IDLE:
            self._idle.append(drafting.deferred)

    def _take(self) -> ModelDrafter | None:
        if self.lm is None:
            return None
        return self._idle.pop() if self._idle else self.lm.another()


def load_drafters(
    choice: Draft,
    ref: str | None,
    gpu: int | None,
    target: Checkpoint,
    tokenizer: Tokenizer,
    store: ModelStore,
    report: Report,
    ends: AbstractSet[int] = frozenset(),
    beside: Path | None = None,
    learned: Path | None = None,
) -> Drafters:
    """What `--draft` and `--draft-model` ask for. Raises UsageError when it is not to be had.

    ends: the target's tokens that end a text. beside: where the target's file or folder lies. learned: where what
    learned for this target does.
    """
    if choice == "none":
        return Drafters(why="nothing drafts, as asked")
    if choice == "suffix":
        return Drafters(why="earlier text drafts, as asked")
    head, beside = _at_tail(target, beside, report) if choice == "auto" else ("", beside)
    threads = draft_threads()
    # Loading too: threads of torch that wait for each other spin, which where processors are taken doubled its cost.
    with ThreadPoolExecutor(1, "draft", torch.set_num_threads, (threads,)) as thread:
        source = _Source(target, tokenizer, store, choose_device(gpu), report, ends, thread, learned)
        if ref is not None:
            loaded: _Loaded | None = source.load(Found(ref, "as asked"))
        else:
            loaded = source.first_whole(beside, bool(head), choice)
    if loaded is None:
        return _without(choice, head, target)
    lm, found = loaded.lm, loaded.found
    across = ", across vocabularies" if isinstance(lm, AcrossDrafter) else ""
    if isinstance(lm, TappedDrafter):
        across = f" ({lm.name}), from rows of layers {', '.join(map(str, lm.layers))}"
    why = f"{found.name} drafts{across}: {found.why}" + (f"; beside it {head} at the tail" if head else "")
    return Drafters(lm, loaded.step_ms, loaded.leaves, threads, why, bool(head), [lm])


def _without(choice: Draft, head: str, target: Checkpoint) -> Drafters:
    """No model drafts. Raises UsageError where one was asked for."""
    if head:
        return Drafters(why=f"{head} at the tail", at_tail=True)
    if choice == "lm":
        raise UsageError(
            f"expected a drafter for {target.manifest.model}, none was found; give --draft-model REF, or make "
            "one: swarm draft distill"
        )
    more = f"swarm model pull {DEFAULT_MODEL} adds a drafter where the target is large"
    return Drafters(why=f"earlier text alone drafts: no fitting model is here; {more}")


@dataclass(frozen=True)
class _Loaded:
    """A drafter that has made its first steps: ms of one for one leaf, and how many leaves one should have."""

    found: Found
    lm: ModelDrafter
    step_ms: float
    leaves: int


@dataclass(frozen=True)
class _Source:
    """Where drafters of a target are loaded from, in `thread`. ends: the target's tokens that end a text; learned: the
    folder of what learned for it."""

    target: Checkpoint
    tokenizer: Tokenizer
    store: ModelStore
    device: torch.device
    report: Report
    ends: AbstractSet[int]
    thread: ThreadPoolExecutor
    learned: Path | None = None

    def first_whole(self, beside: Path | None, at_tail: bool, choice: Draft) -> _Loaded | None:
        """The first drafter for the target that can be loaded; None: there is none. One that cannot is named and passed
        over: it would only have proposed. Raises SwarmError for it where a model's drafts were asked for."""
        passed: set[str] = set()
        while True:
            found = None
            try:
                found = find_drafter(
                    self.target.manifest, self.tokenizer, self.store, beside, at_tail, passed, self.learned
                )
                if found is None or found.ref in passed:
                    return None
                return self.load(found)
            except SwarmError as error:
                if choice == "lm":
                    raise
                where = "the drafter that ships with this package" if found is None else found.ref
                self.report(Notice(f"not drafting with {where}: {error}", "warning"))
                if found is None:
                    return None
                passed.add(found.ref)

    def load(self, found: Found) -> _Loaded:
        """Raises SwarmError, whatever is wrong with it."""
        return self.thread.submit(self._load, found).result()

    def _load(self, found: Found) -> _Loaded:
        if found.wrong:
            raise UsageError(found.wrong)
        with drafter_of(Path(found.ref)):
            lm = load_drafter(
                found.ref,
                self.target,
                self.tokenizer,
                self.store,
                self.device,
                context=self.target.manifest.context,
                report=self.report,
                ends=self.ends,
            )
            assert lm is not None, "a reference was given"
            return _Loaded(found, lm, *_measured(lm))


def _at_tail(target: Checkpoint, beside: Path | None, report: Report) -> tuple[str, Path | None]:
    """Which head of the target drafts at the tail, in words, "": none; and where else a drafter may lie beside it."""
    if target.manifest.mtp is not None:
        return OWN_HEAD, beside
    try:
        if beside is not None and read_eagle(beside / BESIDE) is not None:
            return EAGLE, None
    except ModelError as error:
        report(Notice(f"not drafting with the head beside the model: {error}", "warning"))
        return "", None
    return "", beside


def draft_threads() -> int:
    """Half of the cores: drafting runs beside the ring's traffic, and often beside a stage on the same machine.

    Threads of one step wait for each other, so one core that is taken makes the whole step late.
    """
    return max(1, (psutil.cpu_count(logical=False) or 2) // 2)


def _measured(lm: ModelDrafter) -> tuple[float, int]:
    """Milliseconds of a draft step for one leaf, and how many leaves a step should have.

    The quickest of a few: what else runs on the machine while it loads makes a step slower, never quicker. Two that
    took the same are enough: whoever waits for a first token waits for these too.
    """
    took = {count: quickest(lambda count=count: _step_ms(lm, count)) for count in (1, *LEAVES)}  # type: ignore[misc]
    few, many = LEAVES
    return max(0.5, took[1]), many if took[many] < WIDE * took[few] else few


def quickest(measure: Callable[[], float]) -> float:
    """The least of at most `MOST_STEPS` measurements, fewer where the two least are within `ALIKE` of each other."""
    found: list[float] = []
    while len(found) < MOST_STEPS and (len(found) < 2 or found[1] > ALIKE * found[0]):
        found = sorted([*found, measure()])
    return found[0]


def _step_ms(lm: ModelDrafter, leaves: int) -> float:
    """One step for so many leaves, all of them children of the root."""
    lm.begin(WARM_UP_PROMPT, Sampling())
    if isinstance(lm, TappedDrafter):
        lm.store.put(at_position(0), torch.zeros(lm.width))
    nodes = tuple(DraftNode(i + 1, ROOT, i, len(WARM_UP_PROMPT)) for i in range(leaves))
    start = time.perf_counter()
    with torch.inference_mode():
        lm.step(DraftStep(nodes=nodes, expand=tuple(node.id for node in nodes)))
    return (time.perf_counter() - start) * 1000.0
