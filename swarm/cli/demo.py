"""`swarm demo`: a whole swarm on this machine, an answer, and its receipt checked."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from swarm.base.config import DEFAULT_MODEL, PORT, JoinConfig, MemberConfig
from swarm.base.events import Report
from swarm.base.option import Number, build, option
from swarm.cli.ask import GenerateConfig, ask, check
from swarm.cli.common import models_dir, say, state_dir
from swarm.cli.draw import draw_ring
from swarm.cli.early import check_http_port
from swarm.cli.generate import add_run_options
from swarm.cli.loop import load, run_loop
from swarm.cli.parser import Parser
from swarm.client.route_policy import RouteRules

PROMPT = "Write a Python function that reverses a string."


@dataclass(frozen=True)
class DemoOptions:
    """The swarm that is shown, and what it is asked."""

    prompt: str = option(PROMPT, "what to ask", "PROMPT", name="prompt", optional=True)
    nodes: int = option(3, "(default: %(default)s)", "N", read=Number(int, 1, 64, "a number of nodes"), everyday=True)
    rtt: float = option(
        0.0,
        "emulated round trip of every edge (default: %(default)s)",
        "MS",
        read=Number(float, 0, 10_000, "milliseconds"),
        everyday=True,
    )
    dashboard: int | None = option(
        None,
        "serve chat, dashboard and API on this port (default: 8080) until Ctrl-C, instead of asking once",
        "PORT",
        read=PORT,
        alone=8080,
        everyday=True,
    )
    model: str | None = option(None, "the model (default: the one that comes with wanswarm)", "REF", everyday=True)


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = (
        "Start real node processes on this machine, each with its share of the layers, ask them, draw the ring, and "
        "verify the receipt. --rtt puts emulated distance between them."
    )
    parser.declare(DemoOptions)
    parser.declare(JoinConfig, "threads", "dtype", "weights_as")
    add_run_options(parser)
    parser.declare(GenerateConfig, "system", "raw", "receipt", "color")
    parser.declare(MemberConfig, "state", "models")
    parser.set_defaults(run=run, threads=1, max_tokens=96)


def run(arguments: argparse.Namespace) -> int:
    """Start, ask, draw, verify, stop."""
    options, member = build(DemoOptions, vars(arguments)), MemberConfig(state_dir(arguments), models_dir(arguments))
    check(GenerateConfig.from_arguments(arguments, member, options.prompt, RouteRules()))  # before nodes are started
    if options.dashboard is not None:
        check_http_port("127.0.0.1", options.dashboard)
    from swarm.terminal.progress import reporter

    load("swarm.client.client")
    load("swarm.model.files.checkpoint")
    with reporter(json_lines=False, out=sys.stderr) as report:
        return run_loop(_demo(arguments, report))


async def _demo(arguments: argparse.Namespace, report: Report) -> int:
    import asyncio

    from swarm.cli.verify import verify_file
    from swarm.model.files.checkpoint import open_model
    from swarm.model.files.store import ModelStore
    from swarm.testbed.cluster import LocalSwarm, local_ring, split_layers

    options, models = build(DemoOptions, vars(arguments)), models_dir(arguments)
    checkpoint = await asyncio.to_thread(open_model, options.model or DEFAULT_MODEL, ModelStore(models), (0, 1), report)
    layers = split_layers(checkpoint.manifest.n_layers, options.nodes)
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
        swarm = LocalSwarm(Path(folder), model=options.model, rtt_ms=options.rtt, arguments=words)
        where = f", {options.rtt:g} ms apart" if options.rtt else ""
        say(f"starting {options.nodes} nodes of {checkpoint.manifest.model} on this machine{where}")
        async with local_ring(swarm, layers, report) as ring:
            member = MemberConfig(
                state_dir(arguments), models, ring.invite, lan=False, remember=False, punch=not options.rtt
            )
            config = GenerateConfig.from_arguments(arguments, member, options.prompt, RouteRules())
            if options.dashboard is not None:
                await _dashboard(config, options.dashboard, report)
                return 0
            say(f"\n> {options.prompt}\n")
            result = await ask(config, report)
            say("\n" + draw_ring(result.ring))
            if result.receipt is None:
                return 1 if result.receipt_unwritten else 0
            return verify_file(Path(result.receipt), show=say)


async def _dashboard(config: GenerateConfig, port: int, report: Report) -> None:
    """The swarm behind a gateway, for a browser."""
    from swarm.cli.serve import KEEP_S, serve_until_stopped
    from swarm.serve.config import GatewayConfig

    run = config.request
    gateway = GatewayConfig(speculation=run.speculation, draft=run.draft, wire=run.wire)
    await serve_until_stopped([replace(config.asked, keep_s=KEEP_S)], gateway, "127.0.0.1", port, report)
