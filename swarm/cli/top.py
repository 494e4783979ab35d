"""`swarm top`: a live view of a swarm in a terminal."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from swarm.base.errors import UsageError
from swarm.cli.common import add_member_options, member_config, number
from swarm.cli.loop import run_loop


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "top",
        help="watch a swarm work",
        description="Watch a swarm in a terminal: its nodes with their layers, queues and runs, and what changes, "
        "until Ctrl-C. For programs, and where there is no terminal: swarm status --watch --json.",
    )
    parser.set_defaults(run=run)
    add_member_options(parser)
    parser.add_argument(
        "--every", type=number(float, 0.5, 3600, "seconds"), default=1.0, metavar="S", help="seconds between two looks"
    )


def run(arguments: argparse.Namespace) -> int:
    """Look until Ctrl-C. Raises UsageError without a terminal."""
    if not sys.stdout.isatty():
        raise UsageError("expected a terminal, found a pipe or a file; use swarm status --watch --json")
    return run_loop(_watch(arguments))


async def _watch(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.live import Live

    from swarm.terminal.observer import look_at
    from swarm.terminal.top import Watch, render_top

    console, watch = Console(highlight=False), Watch()
    async with look_at(member_config(arguments)) as snapshot:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                watch.take(await snapshot(), time.time())
                live.update(render_top(watch, *console.size), refresh=True)
                await asyncio.sleep(arguments.every)
