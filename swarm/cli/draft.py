"""`swarm draft distill`: make a drafter for a target that has none."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from swarm.base.errors import UsageError
from swarm.cli.common import GPU, add_folders, models_dir, number, say
from swarm.model.files.named import DEFAULT_MODEL


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser("draft", help="make a drafter", description="Small models that draft for large ones.")
    what = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    distill = what.add_parser(
        "distill",
        help="distil a drafter from a target",
        description="Take a few layers of the target and train them on what the target itself says over many kinds of "
        "prompts. Resumable: run it again with the same --out to go on.",
    )
    distill.set_defaults(run=run)
    distill.add_argument("--target", default=DEFAULT_MODEL, metavar="REF", help="the target (default: %(default)s)")
    distill.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the drafter is written")
    distill.add_argument(
        "--layers", default="11", metavar="N", help="how many layers, or which: 0,1,2,8,27,28,29 (default: %(default)s)"
    )
    distill.add_argument(
        "--minutes", type=number(float, 0.01, 100_000, "minutes"), default=60.0, metavar="M", help="(default: 60)"
    )
    distill.add_argument("--gpu", type=GPU, metavar="N", help="on CUDA device N")
    distill.add_argument("--device", metavar="DEVICE", help="cpu, or cuda:N (another way to say --gpu N)")
    distill.add_argument("--dtype", choices=("int8", "bfloat16"), default="int8", help="of the weights written")
    add_folders(distill)


def run(arguments: argparse.Namespace) -> int:
    """Distil and print the scores."""
    layers = parse_kept(arguments.layers)
    gpu = parse_device(arguments.device) if arguments.device else arguments.gpu
    from draft.distill import DistillSettings, distill
    from swarm.model.device import choose_device
    from swarm.model.files.store import ModelStore
    from swarm.terminal.progress import reporter

    device = choose_device(gpu)
    store = ModelStore(models_dir(arguments))
    with reporter(json_lines=False, out=sys.stderr) as report:
        settings = DistillSettings(layers=layers, minutes=arguments.minutes, dtype=arguments.dtype)
        command = shlex.join(["swarm", *sys.argv[1:]])
        scores = distill(arguments.target, arguments.out, settings, store, device, report, command=command)
    for stored, kinds in scores.items():
        for kind, score in sorted(kinds.items()):
            say(f"{stored:9} {kind:16} {score}")
    print(arguments.out)
    return 0


def parse_kept(text: str) -> int | tuple[int, ...]:
    """A number of layers, or which layers. Raises UsageError."""
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"expected a number of layers, or a list such as 0,1,28,29, found {text!r}")
    return int(text) if len(parts) == 1 else tuple(int(part) for part in parts)


def parse_device(text: str) -> int | None:
    """The GPU number of a device name, None for the CPU. Raises UsageError."""
    kind, _, index = text.partition(":")
    if kind == "cpu" and not index:
        return None
    if kind == "cuda" and (index.isdigit() or not index):
        return int(index or 0)
    raise UsageError(f"expected --device cpu or cuda:N, found {text!r}")
