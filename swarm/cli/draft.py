"""`swarm draft`: make a drafter for a target that has none (`distill`), or let the one in use learn (`learn`)."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from swarm.base.config import DEFAULT_MODEL, GPU, MemberConfig
from swarm.base.errors import UsageError
from swarm.base.option import Number, build, option
from swarm.base.paths import folder_to_write
from swarm.cli import learn
from swarm.cli.common import models_dir, say
from swarm.cli.parser import Parser


def parse_kept(text: str) -> int | tuple[int, ...]:
    """A number of layers, or which layers. Raises UsageError."""
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if re.fullmatch("[0-9]{1,5}", part)]
    if len(numbers) < len(parts) or len(set(numbers)) < len(parts) or numbers == [0]:
        raise UsageError(f"expected a number of layers, or a list such as 0,1,28,29, found {text!r}")
    return numbers[0] if len(parts) == 1 else tuple(numbers)


def parse_device(text: str) -> int | None:
    """The GPU number of a device name, None for the CPU. Raises UsageError."""
    kind, _, index = text.partition(":")
    if kind == "cpu" and not index:
        return None
    if kind == "cuda" and (index.isdigit() or not index):
        return int(index or 0)
    raise UsageError(f"expected cpu or cuda:N, found {text!r}")


@dataclass(frozen=True)
class DistillOptions:
    """What to distil from what, and how long it may take."""

    target: str = option(DEFAULT_MODEL, "the target (default: %(default)s)", "REF")
    out: Path = option(Path(), "where the drafter is written", "DIR", read=folder_to_write, required=True)
    kind: str = option(
        "layers",
        "what is made: a small model of the target's layers, or a head that reads its hidden rows "
        "(default: %(default)s)",
        choices=("layers", "eagle3", "dflash", "dspark", "medusa"),
    )
    layers: int | tuple[int, ...] | None = option(
        None,
        "how many layers, or of kind layers which: 0,1,2,8,27,28,29 (default: layers 11, eagle3 1, dflash and "
        "dspark 3; medusa 1 block a head)",
        "N",
        read=parse_kept,
    )
    ahead: int | None = option(
        None,
        "tokens that it learns to draft ahead (default: eagle3 and medusa 4, dflash and dspark 7)",
        "N",
        read=Number(int, 1, 64, "a number of tokens"),
    )
    text: Path | None = option(
        None, "folder of the target's text, for drafters of several kinds (default: work in --out)", "DIR",
        read=folder_to_write,
    )  # fmt: skip
    minutes: float = option(60.0, "(default: 60)", "M", read=Number(float, 0.01, 100_000, "minutes"))
    gpu: int | None = option(None, "on CUDA device N", "N", read=GPU)
    device: str | None = option(None, "cpu, or cuda:N (another way to say --gpu N)", "DEVICE")
    dtype: str = option(
        "auto",
        "of the weights written (default: of kind layers int8, of others bfloat16, which is all they have)",
        choices=("auto", "int8", "q4_1", "bfloat16"),
    )


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = "Small models that draft for large ones."
    what = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    distill = what.add_parser(
        "distill",
        help="distil a drafter from a target",
        description="Train a drafter on what the target itself says over many kinds of prompts: a few of its own "
        "layers, or a head that reads its hidden rows (EAGLE-3, DFlash, DSpark, Medusa), as others publish them. "
        "Resumable: run it again with the same --out to go on.",
    )
    distill.declare(DistillOptions)
    distill.declare(MemberConfig, "state", "models")
    distill.set_defaults(run=run)
    learn.add(what)


def run(arguments: argparse.Namespace) -> int:
    """Distil and print the scores."""
    options = build(DistillOptions, vars(arguments))
    gpu = parse_device(options.device) if options.device else options.gpu
    if options.device and options.gpu is not None and gpu != options.gpu:
        raise UsageError(f"expected one device, found --gpu {options.gpu} and --device {options.device}")
    from draft.distill import DistillSettings, distill
    from swarm.model.device import choose_device
    from swarm.model.files.store import ModelStore
    from swarm.terminal.progress import reporter

    device = choose_device(gpu)
    store = ModelStore(models_dir(arguments))
    with reporter(json_lines=False, out=sys.stderr) as report:
        settings = DistillSettings(
            options.kind, options.layers, options.ahead, minutes=options.minutes, dtype=options.dtype
        )
        command = shlex.join(["swarm", *sys.argv[1:]])
        scores = distill(
            options.target, options.out, settings, store, device, report, command=command, text=options.text
        )
    for stored, kinds in scores.items():
        for kind, score in sorted(kinds.items()):
            say(f"{stored:9} {kind:16} {score}")
    print(options.out)
    return 0
