"""`swarm plan`: what a described fleet would do, without a machine of it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from swarm.cli.common import add_folders, add_weights_as, models_dir


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "plan",
        help="dry run over a described fleet",
        description="Read a fleet file (memory, speed, distances) and print which blocks its nodes would take, the "
        "route of a request, the predicted pass time, and tokens/s with and without speculation.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--nodes", type=Path, required=True, metavar="FILE", help="the fleet, TOML or JSON")
    parser.add_argument("--model", metavar="REF", help="the model (default: the one that the file describes)")
    add_weights_as(parser)
    parser.add_argument("--explain", action="store_true", help="say why")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_folders(parser)


def run(arguments: argparse.Namespace) -> int:
    """Plan and print."""
    from swarm.planner.dry_run import dry_run, dry_run_data
    from swarm.planner.fleet_file import read_fleet

    fleet = read_fleet(arguments.nodes)
    shape = None
    if arguments.model is not None:
        import torch

        from swarm.discovery.model_shape import model_shape
        from swarm.model.files.store import ModelStore
        from swarm.model.packing import choose_weights
        from swarm.terminal.progress import reporter

        with reporter(json_lines=False, out=sys.stderr) as report:
            manifest = ModelStore(models_dir(arguments)).open(arguments.model, (0, 1), report).manifest
        cpu = torch.device("cpu")
        shape = model_shape(manifest, torch.bfloat16, choose_weights(arguments.weights_as, "bfloat16", cpu))
    planned = dry_run(fleet, shape, arguments.explain)
    if arguments.json:
        print(json.dumps(dry_run_data(planned)))
    else:
        from rich.console import Console

        from swarm.terminal.plan_table import render_plan

        width = shutil.get_terminal_size((100, 24)).columns
        Console(width=width, highlight=False).print(render_plan(planned, width, arguments.explain))
    return 0 if planned.route is not None else 1
