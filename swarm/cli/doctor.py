"""`swarm doctor`: what this machine brings and what is wrong."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from swarm.cli.common import GPU, add_member_options, member_config, number
from swarm.cli.loop import run_loop
from swarm.model.files.named import DEFAULT_MODEL

MARKS = {"ok": "ok", "warning": "!!", "wrong": "XX"}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "doctor",
        help="what this machine brings, what is wrong, what to do",
        description="Measure this machine, and with --swarm its way to a swarm: speed, memory, clock, distances, "
        "bandwidth, and whether others can dial it. Ends with 1 when something is wrong.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--model", default=DEFAULT_MODEL, metavar="REF", help="measure with it (default: %(default)s)")
    parser.add_argument(
        "--probe", action="store_true", help="measure the speed though this machine's node measured it before"
    )
    parser.add_argument("--no-speed", action="store_true", help="load nothing")
    parser.add_argument("--gpu", type=GPU, metavar="N", help="look at CUDA device N")
    parser.add_argument("--port", type=number(int, 1, 65535, "a port"), metavar="PORT", help="can others dial it?")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_member_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Look, print, advise."""
    config = member_config(arguments)
    from swarm.base.errors import SwarmError
    from swarm.terminal.doctor import Finding, look_at_kept, look_at_machine, look_at_speed, look_at_swarm
    from swarm.terminal.progress import reporter

    kept = look_at_kept(config, time.time())
    findings = [*look_at_machine(config, arguments.gpu), *kept]
    with reporter(json_lines=arguments.json, out=sys.stderr) as report:
        if arguments.probe or not (kept or arguments.no_speed):
            try:
                findings += look_at_speed(config, arguments.model, arguments.gpu, report)
            except SwarmError as error:
                findings.append(Finding("speed", "wrong", "not measured", str(error)))
    if config.invite is not None:
        try:
            findings += run_loop(look_at_swarm(config, arguments.port))
        except SwarmError as error:
            findings.append(Finding("swarm", "wrong", "not reached", str(error)))
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(f"{MARKS[finding.standing]}  {finding.what:16} {finding.found}")
            if finding.advice:
                print(f"    {finding.advice}")
    return 1 if any(finding.standing == "wrong" for finding in findings) else 0
