"""`swarm status`: who is there, what they hold, and how far apart they are."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import dataclass

from swarm.base.config import MemberConfig
from swarm.base.option import Number, build, option
from swarm.base.swarm_state import SwarmState
from swarm.cli.common import add_member_options, member_config
from swarm.cli.loop import run_loop
from swarm.cli.parser import Parser


@dataclass(frozen=True)
class StatusOptions:
    """How to look."""

    json: bool = option(False, "print JSON (with --watch: one line a change)", everyday=True)
    watch: bool = option(False, "go on until Ctrl-C", everyday=True)
    every: float = option(2.0, "with --watch (default: %(default)s)", "S", read=Number(float, 0.2, 3600, "seconds"))


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = (
        "Show a swarm's nodes, which layers they hold, whether all are covered, and the ring a request would take now "
        "with the kinds of its edges."
    )
    parser.declare(StatusOptions)
    add_member_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look once, or keep looking."""
    return run_loop(_look(member_config(arguments), build(StatusOptions, vars(arguments))))


async def _look(member: MemberConfig, options: StatusOptions) -> int:
    import asyncio

    from swarm.terminal.observer import look_at

    async with look_at(member) as snapshot:
        if not options.watch:
            _show(await snapshot(), options.json, clear=False)
            return 0
        while True:
            _show(await snapshot(), options.json, clear=True)
            await asyncio.sleep(options.every)


def _show(seen: SwarmState, as_json: bool, clear: bool) -> None:
    from swarm.terminal.status import render_status, status_json

    if as_json:
        print(json.dumps(status_json(seen)), flush=True)
        return
    from rich.console import Console

    width = shutil.get_terminal_size((80, 24)).columns
    console = Console(width=width, highlight=False)
    if clear and sys.stdout.isatty():
        console.clear()
    console.print(render_status(seen, width))
