"""`swarm probe`: this machine as an entry of a fleet file."""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import dataclass

from swarm.base.config import DEFAULT_MODEL, GPU, JoinConfig, MemberConfig
from swarm.base.option import build, option
from swarm.cli.common import models_dir
from swarm.cli.parser import Parser


@dataclass(frozen=True)
class ProbeOptions:
    """What to measure, and what the entry says besides."""

    model: str = option(DEFAULT_MODEL, "measure with two of its layers (default: %(default)s)", "REF")
    gpu: int | None = option(None, "CUDA device N", "N", read=GPU)
    name: str | None = option(None, "of this machine (default: its host name)", "NAME")
    region: str = option("", "machines of one region are in one room (default: a region of its own)", "REGION")
    owner: str = option("", "whose it is", "OWNER")
    json: bool = option(False, "print JSON")


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = (
        "Measure what this machine would bring to a model and print it as a fleet file, which swarm plan reads: "
        "free memory, and milliseconds of one layer for 1, 8 and 64 rows. Joins nothing."
    )
    parser.declare(ProbeOptions)
    parser.declare(JoinConfig, "weights_as")
    parser.declare(MemberConfig, "state", "models")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    options = build(ProbeOptions, vars(arguments))
    from swarm.node.fleet_entry import Described, as_json, as_toml, measure_entry
    from swarm.terminal.progress import reporter

    place = Described(options.name or platform.node() or "here", options.region, options.owner)
    with reporter(json_lines=False, out=sys.stderr) as report:
        measured = measure_entry(options.model, models_dir(arguments), place, options.gpu, arguments.weights_as, report)
    print(as_json(*measured) + "\n" if options.json else as_toml(*measured), end="")
    return 0
