"""`swarm draft learn`: the drafter goes on learning from runs that this requester made."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from swarm.base.config import DEFAULT_MODEL, THREADS, MemberConfig
from swarm.base.errors import UsageError
from swarm.base.option import Number, build, option
from swarm.base.paths import folder_to_write
from swarm.cli.common import models_dir, say, state_dir

if TYPE_CHECKING:
    from draft.learn import Lesson
    from draft.run_shelf import RunShelf
    from swarm.base.events import Report


@dataclass(frozen=True)
class LearnOptions:
    """For which target, for how long, or that all of it is to be forgotten."""

    target: str | None = option(None, f"the target (default: {DEFAULT_MODEL}; of --forget: all)", "REF")
    minutes: float = option(10.0, "of training (default: 10)", "M", read=Number(float, 0.01, 100_000, "minutes"))
    out: Path | None = option(
        None,
        "write the drafter there, for --draft-model, instead of where --draft auto finds it",
        "DIR",
        read=folder_to_write,
    )
    threads: int | None = option(None, "of computing (default: half of the cores)", "N", read=THREADS)
    forget: bool = option(False, "delete what was kept for learning, and what was learned from it")


def add(actions: Any) -> None:
    """The action beside `distill`."""
    learn = actions.add_parser(
        "learn",
        help="let the drafter learn from your own runs",
        description="Train the drafter that you use on runs that --keep-for-learning kept. A fifth of the prompts is "
        "held out; the new drafter is used only if it is better on these and as good as before on general text. Ctrl-C "
        "ends early and keeps what was learned; the next call goes on.",
    )
    learn.declare(LearnOptions)
    learn.declare(MemberConfig, "state", "models")
    learn.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Learn and tell how it went, or forget."""
    options = build(LearnOptions, vars(arguments))
    if options.forget and options.out is not None:
        raise UsageError("expected --forget or --out, found both")
    from draft.run_shelf import FOLDER, RunShelf
    from swarm.terminal.progress import reporter

    shelf = RunShelf(state_dir(arguments) / FOLDER)
    with reporter(json_lines=False, out=sys.stderr) as report:
        if options.forget:
            return forget(options, shelf, models_dir(arguments), report)
        lesson = learn(options, shelf, models_dir(arguments), report)
    tell(lesson, options.out)
    return 0


def forget(options: LearnOptions, shelf: RunShelf, models: Path, report: Report) -> int:
    """Delete the runs of one target or of all, and what was learned from them. Raises SwarmError."""
    targets = shelf.targets()
    if options.target is not None:
        from swarm.model.files.checkpoint import open_model
        from swarm.model.files.store import ModelStore

        digest = open_model(options.target, ModelStore(models), (0, 1), report).manifest.digest
        targets = [target for target in targets if target == digest]
    runs = sum(shelf.forget(target) for target in targets)
    say(f"forgotten: {runs} runs of {len(targets)} models, and what was learned from them ({shelf.folder})")
    return 0


def learn(options: LearnOptions, shelf: RunShelf, models: Path, report: Report) -> Lesson:
    """One round. Raises SwarmError."""
    import torch

    from draft.learn import Learner, LearnSettings
    from swarm.client.drafters import draft_threads
    from swarm.model.files.checkpoint import load_tokenizer, open_model
    from swarm.model.files.store import ModelStore

    torch.set_num_threads(options.threads or draft_threads())
    store, ref = ModelStore(models), options.target or DEFAULT_MODEL
    target, tokenizer = open_model(ref, store, (0, 1), report), load_tokenizer(ref, store, report)
    settings = LearnSettings(minutes=options.minutes)
    learner = Learner(target, tokenizer, shelf, store.path(ref), settings, report, options.out)
    say(f"learning from {len(learner.runs)} runs, on from {learner.in_use}")
    with stopped_by_interrupts() as stop:
        return learner.learn(stop, shlex.join(["swarm", *sys.argv[1:]]))


@contextlib.contextmanager
def stopped_by_interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second is one as ever."""
    stop = threading.Event()

    def heard(number: int, frame: FrameType | None) -> None:
        say("ending with what was learned; Ctrl-C again ends at once, without")
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, heard)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def tell(lesson: Lesson, out: Path | None) -> None:
    """Before and after, and what is used from now on."""
    before, after, (was, now) = lesson.before, lesson.after, lesson.general
    say(f"{lesson.held} of {lesson.runs} runs are held out, never trained on: {after.positions} tokens")
    say(f"  first choice  {before.first:.3f} -> {after.first:.3f}")
    say(f"  first eight   {before.first8:.3f} -> {after.first8:.3f}")
    say(f"general text: first choice {was.first:.3f} -> {now.first:.3f}, of {now.positions} tokens")
    if lesson.why_not is not None:
        say(f"the new drafter is not used: {lesson.why_not}; the one before stays")
    else:
        where = f"use it with --draft-model {out}" if out is not None else "--draft auto uses it from the next start on"
        say(f"the new drafter is better; {where}")
    if lesson.stopped:
        say("stopped before its time: the same command goes on")
    if lesson.folder is not None:
        print(lesson.folder)
