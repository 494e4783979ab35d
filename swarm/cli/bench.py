"""`swarm bench`: measure on this machine, with emulated distance between real node processes."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from swarm.base.config import DEFAULT_MODEL, GPU, THREADS, MemberConfig
from swarm.base.option import Number, build, option
from swarm.base.paths import folder_to_write
from swarm.cli.common import models_dir, say, state_dir
from swarm.cli.early import check_draft, check_gpu
from swarm.cli.loop import run_loop
from swarm.cli.parser import Parser
from swarm.client.config import RequesterConfig
from swarm.testbed.bench import BenchPlan


@dataclass(frozen=True)
class BenchOptions:
    """Of what ring, and where results go."""

    out: Path = option(
        Path("bench-speculation"), "where results go (default: %(default)s)", "DIR", read=folder_to_write, everyday=True
    )
    nodes: int = option(
        3, "stages of the ring (default: %(default)s)", "N", read=Number(int, 1, 64, "a number of nodes"), everyday=True
    )
    model: str | None = option(None, f"the target (default: {DEFAULT_MODEL})", "REF", everyday=True)
    gpu: int | None = option(
        None, "every node computes on CUDA device N (default: the CPU)", "N", read=GPU, everyday=True
    )
    threads: int = option(1, "compute threads of each node (default: %(default)s)", "N", read=THREADS, everyday=True)
    json: bool = option(False, "print the summary as JSON instead of a table", everyday=True)


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = "Measure on this machine."
    what = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    one = what.add_parser(
        "speculation",
        help="tokens per second over plain decoding, by kind of text, distance, mode and drafter",
        description="Run every prompt in every mode with every drafter over a ring on this machine, with emulated "
        "distance. Writes runs.jsonl, summary.json and pictures; goes on where it was stopped.",
    )
    one.declare(BenchOptions)
    one.declare(BenchPlan)
    one.declare(RequesterConfig, "draft_model", "draft_gpu")
    one.declare(MemberConfig, "state", "models")
    one.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure, write, print."""
    from swarm.model.files.store import ModelStore
    from swarm.terminal.progress import reporter
    from swarm.testbed.bench import measure, table
    from swarm.testbed.bench_plots import plot
    from swarm.testbed.bench_ring import RingSettings, open_ring
    from swarm.testbed.cluster import LocalSwarm

    given, options = vars(arguments), build(BenchOptions, vars(arguments))
    plan = build(BenchPlan, given)
    check_gpu(options.gpu, "--gpu")
    check_draft("auto", arguments.draft_model, arguments.draft_gpu)
    models = models_dir(arguments)
    device = ("--gpu", str(options.gpu)) if options.gpu is not None else ("--cpu",)
    with reporter(json_lines=False, out=sys.stderr) as report:
        store = ModelStore(models)
        n_layers = store.open(options.model or DEFAULT_MODEL, (0, 1), report).manifest.n_layers
        swarm = LocalSwarm(
            state=state_dir(arguments) / "bench",
            model=options.model,
            arguments=(*device, "--threads", str(options.threads), "--models", str(models)),
        )
        ring = RingSettings(swarm, models, n_layers, options.nodes, arguments.draft_model, arguments.draft_gpu)
        summary = run_loop(measure(plan, lambda rtt_ms: open_ring(ring, rtt_ms, report), options.out, report))
    if options.json:
        print(json.dumps(summary))
        return 0
    print(table(summary))
    for picture in plot(summary, options.out):
        say(f"wrote {picture}")
    return 0
