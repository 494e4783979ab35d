"""`swarm demo`: a whole swarm on this machine, an answer, and its receipt checked."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.base.events import Report
from swarm.cli.common import PORT, THREADS, add_folders, add_weights_as, models_dir, number, say, state_dir
from swarm.cli.draw import draw_ring
from swarm.cli.generate import add_run_options
from swarm.cli.loop import run_loop

if TYPE_CHECKING:
    from swarm.base.config import MemberConfig
    from swarm.run.api import Draft

PROMPT = "Write a Python function that reverses a string."


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "demo",
        help="a whole swarm on this machine, and an answer",
        description="Start real node processes on this machine, each with its share of the layers, ask them, draw the "
        "ring, and verify the receipt. --rtt puts emulated distance between them.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("prompt", nargs="?", default=PROMPT, metavar="PROMPT", help="what to ask")
    parser.add_argument(
        "--nodes", type=number(int, 1, 64, "a number of nodes"), default=3, metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--rtt",
        type=number(float, 0, 10_000, "milliseconds"),
        default=0.0,
        metavar="MS",
        help="emulated round trip of every edge (default: %(default)s)",
    )
    parser.add_argument(
        "--dashboard",
        type=PORT,
        nargs="?",
        const=8080,
        metavar="PORT",
        help="serve chat, dashboard and API on this port (default: 8080) until Ctrl-C, instead of asking once",
    )
    parser.add_argument("--model", metavar="REF", help="the model (default: the one that comes with wanswarm)")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="what nodes compute in"
    )
    add_weights_as(parser)
    parser.add_argument("--threads", type=THREADS, default=1, metavar="N", help="of each node")
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="colour drafted and corrected tokens"
    )
    add_folders(parser)
    add_run_options(parser)
    parser.set_defaults(max_tokens=96)


def run(arguments: argparse.Namespace) -> int:
    """Start, ask, draw, verify, stop."""
    from swarm.terminal.progress import reporter

    with reporter(json_lines=False, out=sys.stderr) as report:
        return run_loop(_demo(arguments, report))


async def _demo(arguments: argparse.Namespace, report: Report) -> int:
    from swarm.base.config import MemberConfig
    from swarm.cli.ask import GenerateConfig, ask
    from swarm.cli.verify import verify_file
    from swarm.client.route_policy import RouteRules
    from swarm.model.files.checkpoint import open_model
    from swarm.model.files.named import DEFAULT_MODEL
    from swarm.model.files.store import ModelStore
    from swarm.testbed.cluster import LocalSwarm, local_ring, split_layers

    models = models_dir(arguments)
    checkpoint = await asyncio.to_thread(
        open_model, arguments.model or DEFAULT_MODEL, ModelStore(models), (0, 1), report
    )
    layers = split_layers(checkpoint.manifest.n_layers, arguments.nodes)
    words: tuple[str, ...] = (
        "--cpu",
        "--threads",
        str(arguments.threads),
        "--dtype",
        arguments.dtype,
        "--models",
        str(models),
    )
    words += ("--weights-as", arguments.weights_as)
    with tempfile.TemporaryDirectory(prefix="swarm-demo-") as folder:
        swarm = LocalSwarm(Path(folder), model=arguments.model, rtt_ms=arguments.rtt, arguments=words)
        where = f", {arguments.rtt:g} ms apart" if arguments.rtt else ""
        say(f"starting {arguments.nodes} nodes of {checkpoint.manifest.model} on this machine{where}")
        async with local_ring(swarm, layers, report) as ring:
            member = MemberConfig(state_dir(arguments), models, ring.invite, lan=False, punch=not arguments.rtt)
            if arguments.dashboard is not None:
                await _dashboard(arguments, member, report)
                return 0
            say(f"\n> {arguments.prompt}\n")
            arguments.json = False
            result = await ask(GenerateConfig.from_arguments(arguments, member, arguments.prompt, RouteRules()), report)
            say("\n" + draw_ring(result.ring))
            if result.receipt is None:
                return 0
            return verify_file(Path(result.receipt), show=say)


async def _dashboard(arguments: argparse.Namespace, member: MemberConfig, report: Report) -> None:
    """The swarm behind a gateway, for a browser."""
    from swarm.cli.serve import KEEP_S, serve_until_stopped
    from swarm.client.client import RequesterConfig
    from swarm.serve.config import GatewayConfig

    draft: Draft = "none" if arguments.speculation == "plain" else arguments.draft
    config = GatewayConfig(speculation=arguments.speculation, draft=draft, wire=arguments.wire)
    asked = RequesterConfig(member, draft, arguments.draft_model, arguments.draft_gpu, keep_s=KEEP_S)
    await serve_until_stopped([asked], config, "127.0.0.1", arguments.dashboard, report)
