"""`swarm status`: who is there, what they hold, and how far apart they are."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from typing import Any

from swarm.cli.common import add_member_options, member_config, number
from swarm.cli.loop import run_loop


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "status",
        help="who is there and what they hold",
        description="Show a swarm's nodes, which layers they hold, whether all are covered, and the ring a request "
        "would take now with the kinds of its edges.",
    )
    parser.set_defaults(run=run)
    add_member_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON (with --watch: one line a change)")
    parser.add_argument("--watch", action="store_true", help="go on until Ctrl-C")
    parser.add_argument(
        "--every", type=number(float, 0.2, 3600, "seconds"), default=2.0, metavar="S", help="with --watch"
    )


def run(arguments: argparse.Namespace) -> int:
    """Look once, or keep looking."""
    return run_loop(_look(arguments))


async def _look(arguments: argparse.Namespace) -> int:
    from swarm.terminal.observer import look_at

    async with look_at(member_config(arguments)) as snapshot:
        if not arguments.watch:
            _show(await snapshot(), arguments.json, clear=False)
            return 0
        while True:
            _show(await snapshot(), arguments.json, clear=True)
            await asyncio.sleep(arguments.every)


def _show(data: dict[str, Any], as_json: bool, clear: bool) -> None:
    if as_json:
        print(json.dumps(data), flush=True)
        return
    from rich.console import Console

    from swarm.terminal.status import render_status

    width = shutil.get_terminal_size((80, 24)).columns
    console = Console(width=width, highlight=False)
    if clear and sys.stdout.isatty():
        console.clear()
    console.print(render_status(data, width))
