"""`swarm plan`: what a described fleet would do, without a machine of it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from swarm.base.config import JoinConfig, MemberConfig
from swarm.base.option import Number, build, option
from swarm.base.paths import read_path
from swarm.cli.common import models_dir
from swarm.cli.parser import Parser


@dataclass(frozen=True)
class PlanOptions:
    """Which fleet, which model, and how to print."""

    nodes: tuple[Path, ...] = option(
        (), "the fleet, TOML or JSON; several files are one fleet", "FILE", read=read_path, many=True, required=True
    )
    model: str | None = option(None, "the model (default: the one that the file describes)", "REF")
    rtt: float | None = option(
        None, "round trip between machines whose files say none", "MS", read=Number(float, 0, 10_000, "milliseconds")
    )
    explain: bool = option(False, "say why")
    json: bool = option(False, "print JSON")


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = (
        "Read fleet files (memory, speed, distances; swarm probe writes a machine's) and print which blocks their "
        "nodes would take, the route of a request, the predicted pass time, and tokens/s with and without speculation."
    )
    parser.declare(PlanOptions)
    parser.declare(JoinConfig, "weights_as")
    parser.declare(MemberConfig, "state", "models")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Plan and print."""
    from swarm.planner.dry_run import dry_run, dry_run_data
    from swarm.planner.fleet_file import read_fleet

    options = build(PlanOptions, vars(arguments))
    fleet = read_fleet(options.nodes, options.rtt)
    shape = None
    if options.model is not None:
        import torch

        from swarm.discovery.model_shape import model_shape
        from swarm.model.files.store import ModelStore
        from swarm.model.weights_as import choose_weights
        from swarm.terminal.progress import reporter

        with reporter(json_lines=False, out=sys.stderr) as report:
            manifest = ModelStore(models_dir(arguments)).open(options.model, (0, 1), report).manifest
        cpu = torch.device("cpu")
        shape = model_shape(manifest, torch.bfloat16, choose_weights(arguments.weights_as, "bfloat16", cpu))
    planned = dry_run(fleet, shape, options.explain)
    if options.json:
        print(json.dumps(dry_run_data(planned)))
    else:
        from rich.console import Console

        from swarm.terminal.plan_table import render_plan

        width = shutil.get_terminal_size((100, 24)).columns
        Console(width=width, highlight=False).print(render_plan(planned, width, options.explain))
    return 0 if planned.route is not None else 1
