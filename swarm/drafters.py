"""The drafters of a requester: which ones a run uses, made from weights that are loaded once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import psutil
import torch
from transformers import PreTrainedTokenizerBase

from draft.asset import load_drafter
from draft.base import ROOT, DraftStep
from draft.lm import LmDrafter
from draft.suffix import SuffixDrafter
from swarm.errors import UsageError
from swarm.events import Report
from swarm.model.checkpoint import Checkpoint
from swarm.model.device import choose_device
from swarm.model.sampler import Sampling
from swarm.model.store import ModelStore
from swarm.ring.request import Drafting
from swarm.ring.run import Draft, RunRequest

GUESSED_STEP_MS = 15.0
WARM_UP_PROMPT = (0,)


@dataclass
class Drafters:
    """Makes the drafters of each run. Runs at once need one model drafter each; they share the weights.

    step_ms   measured milliseconds of one draft step of the model drafter
    threads   compute threads of a draft step, on a CPU
    """

    lm: LmDrafter | None = None
    step_ms: float = GUESSED_STEP_MS
    threads: int = 1
    _idle: list[LmDrafter] = field(default_factory=list)

    def make(self, request: RunRequest) -> Drafting:
        """Drafters for one run, begun where that is quick."""
        choice = request.draft
        inline = None
        if choice in ("suffix", "auto") and request.speculation != "plain":
            inline = SuffixDrafter()
            inline.begin(request.prompt_ids, request.sampling)
        deferred = None
        if choice in ("lm", "auto") and request.speculation != "plain":
            deferred = self._take()
        names = [name for name, used in (("suffix", inline), ("lm", deferred)) if used is not None]
        return Drafting("+".join(names) or "none", inline, deferred, self.threads)

    def give_back(self, drafting: Drafting) -> None:
        """The run is over: its model drafter may serve the next."""
        if isinstance(drafting.deferred, LmDrafter):
            self._idle.append(drafting.deferred)

    def _take(self) -> LmDrafter | None:
        if self.lm is None:
            return None
        return self._idle.pop() if self._idle else self.lm.another()


def load_drafters(
    choice: Draft,
    ref: str | None,
    gpu: int | None,
    target: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    store: ModelStore,
    report: Report,
) -> Drafters:
    """What `--draft` and `--draft-model` ask for. Raises UsageError when it is not to be had."""
    if choice in ("none", "suffix"):
        return Drafters()
    device = choose_device(gpu)
    lm = load_drafter(ref, target, tokenizer, store, device, context=target.manifest.context, report=report)
    if lm is None:
        if choice == "lm":
            raise UsageError(
                f"expected a drafter for {target.manifest.model}, none ships with it; give --draft-model REF, or make "
                "one: swarm draft distill"
            )
        return Drafters()
    threads = draft_threads()
    with ThreadPoolExecutor(1, "draft", torch.set_num_threads, (threads,)) as thread:
        step_ms = thread.submit(_measured, lm).result()
    return Drafters(lm, step_ms, threads, [lm])


def draft_threads() -> int:
    """Half of the cores: drafting runs beside the ring's traffic, and often beside a stage on the same machine.

    Threads of one step wait for each other, so one core that is taken makes the whole step late.
    """
    return max(1, (psutil.cpu_count(logical=False) or 2) // 2)


def _measured(lm: LmDrafter, tokens: Sequence[int] = WARM_UP_PROMPT) -> float:
    """Milliseconds of one draft step, after one to warm up."""
    spent = 0.0
    lm.begin(tokens, Sampling())
    for _ in range(2):
        lm.begin(tokens, Sampling())
        start = time.perf_counter()
        with torch.inference_mode():
            lm.step(DraftStep(expand=(ROOT,), depth=2))  # the first level is known since begin
        spent = (time.perf_counter() - start) * 1000.0
    return max(0.5, spent)
