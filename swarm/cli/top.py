"""`swarm top`: a live view of a swarm in a terminal."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

from swarm.base.config import MemberConfig
from swarm.base.errors import UsageError
from swarm.base.option import Number, build, option
from swarm.cli.common import add_member_options, member_config
from swarm.cli.loop import run_loop
from swarm.cli.parser import Parser


@dataclass(frozen=True)
class TopOptions:
    """How often to look, in seconds."""

    every: float = option(1.0, "seconds between two looks", "S", read=Number(float, 0.5, 3600, "seconds"))


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = (
        "Watch a swarm in a terminal: its nodes with their layers, queues and runs, and what changes, until Ctrl-C. "
        "For programs, and where there is no terminal: swarm status --watch --json."
    )
    parser.declare(TopOptions)
    add_member_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look until Ctrl-C. Raises UsageError without a terminal."""
    if not sys.stdout.isatty():
        raise UsageError("expected a terminal, found a pipe or a file; use swarm status --watch --json")
    return run_loop(_watch(member_config(arguments), build(TopOptions, vars(arguments))))


async def _watch(member: MemberConfig, options: TopOptions) -> int:
    import asyncio

    from rich.console import Console
    from rich.live import Live

    from swarm.terminal.observer import look_at
    from swarm.terminal.top import Watch, render_top

    console, watch = Console(highlight=False), Watch()
    async with look_at(member) as snapshot:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                watch.take(await snapshot(), time.time())
                live.update(render_top(watch, *console.size), refresh=True)
                await asyncio.sleep(options.every)
