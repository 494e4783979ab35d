"""`swarm bench`: measure on this machine, with emulated distance between real node processes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from swarm.cli.common import GPU, THREADS, add_draft_model, add_folders, models_dir, number, say, state_dir
from swarm.cli.loop import run_loop
from swarm.model.files.named import DEFAULT_MODEL


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser("bench", help="measure speed", description="Measure on this machine.")
    what = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    one = what.add_parser(
        "speculation",
        help="tokens per second over plain decoding, by kind of text, distance, mode and drafter",
        description="Run every prompt in every mode with every drafter over a ring on this machine, with emulated "
        "distance. Writes runs.jsonl, summary.json and pictures; goes on where it was stopped.",
    )
    one.set_defaults(run=run)
    one.add_argument(
        "--out",
        type=Path,
        default=Path("bench-speculation"),
        metavar="DIR",
        help="where results go (default: %(default)s)",
    )
    one.add_argument(
        "--rtt",
        type=number(float, 0, 10_000, "milliseconds"),
        nargs="+",
        default=[20.0, 50.0, 100.0],
        metavar="MS",
        help="round trips of every edge (default: 20 50 100)",
    )
    one.add_argument(
        "--nodes",
        type=number(int, 1, 64, "a number of nodes"),
        default=3,
        metavar="N",
        help="stages of the ring (default: %(default)s)",
    )
    one.add_argument(
        "--max-tokens",
        type=number(int, 8, 100_000, "a number of tokens"),
        default=128,
        metavar="N",
        help="length of every answer (default: %(default)s)",
    )
    one.add_argument(
        "--prompts",
        type=number(int, 1, 8, "1 to 8 prompts"),
        default=8,
        metavar="N",
        help="prompts of each class (default: %(default)s)",
    )
    one.add_argument(
        "--classes",
        nargs="+",
        default=["prose", "chat", "code", "copy"],
        metavar="CLASS",
        help="prose, chat, code, copy (default: all)",
    )
    one.add_argument(
        "--modes",
        nargs="+",
        default=["plain", "chain", "tree", "stream"],
        metavar="MODE",
        help="plain, chain, tree, stream (default: all)",
    )
    one.add_argument(
        "--drafts",
        nargs="+",
        default=["suffix", "lm", "auto"],
        metavar="DRAFTER",
        help="suffix, lm, auto (default: all)",
    )
    one.add_argument("--model", metavar="REF", help=f"the target (default: {DEFAULT_MODEL})")
    add_draft_model(one, "the drafter (default: the one shipped for the model)")
    one.add_argument(
        "--gpu",
        type=GPU,
        metavar="N",
        help="every node computes on CUDA device N (default: the CPU)",
    )
    one.add_argument(
        "--threads",
        type=THREADS,
        default=1,
        metavar="N",
        help="compute threads of each node (default: %(default)s)",
    )
    one.add_argument("--json", action="store_true", help="print the summary as JSON instead of a table")
    add_folders(one)


def run(arguments: argparse.Namespace) -> int:
    """Measure, write, print."""
    from swarm.model.files.store import DEFAULT_MODEL as SHIPPED
    from swarm.model.files.store import ModelStore
    from swarm.terminal.progress import reporter
    from swarm.testbed.bench import BenchPlan, measure, table
    from swarm.testbed.bench_plots import plot
    from swarm.testbed.bench_ring import RingSettings, open_ring
    from swarm.testbed.cluster import LocalSwarm

    plan = BenchPlan(
        rtts_ms=tuple(arguments.rtt),
        classes=tuple(arguments.classes),
        modes=tuple(arguments.modes),
        drafts=tuple(arguments.drafts),
        prompts=arguments.prompts,
        max_tokens=arguments.max_tokens,
    )
    models = models_dir(arguments)
    device = ("--gpu", str(arguments.gpu)) if arguments.gpu is not None else ("--cpu",)
    with reporter(json_lines=False, out=sys.stderr) as report:
        store = ModelStore(models)
        n_layers = store.open(arguments.model or SHIPPED, (0, 1), report).manifest.n_layers
        swarm = LocalSwarm(
            state=state_dir(arguments) / "bench",
            model=arguments.model,
            arguments=(*device, "--threads", str(arguments.threads), "--models", str(models)),
        )
        ring = RingSettings(swarm, models, n_layers, arguments.nodes, arguments.draft_model, arguments.draft_gpu)
        summary = run_loop(measure(plan, lambda rtt_ms: open_ring(ring, rtt_ms, report), arguments.out, report))
    if arguments.json:
        print(json.dumps(summary))
        return 0
    print(table(summary))
    for picture in plot(summary, arguments.out):
        say(f"wrote {picture}")
    return 0
