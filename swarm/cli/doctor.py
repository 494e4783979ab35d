"""`swarm doctor`: what this machine brings and what is wrong."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass

from swarm.base.config import DEFAULT_MODEL, GPU
from swarm.base.errors import UsageError
from swarm.base.option import Number, build, option
from swarm.cli.common import add_member_options, member_config
from swarm.cli.loop import run_loop
from swarm.cli.parser import Parser

MARKS = {"ok": "ok", "warning": "!!", "wrong": "XX"}


@dataclass(frozen=True)
class DoctorOptions:
    """What to look at."""

    model: str = option(DEFAULT_MODEL, "measure with it (default: %(default)s)", "REF")
    probe: bool = option(False, "measure the speed though this machine's node measured it before")
    no_speed: bool = option(False, "load nothing")
    gpu: int | None = option(None, "look at CUDA device N", "N", read=GPU)
    wan: bool = option(
        False, "go the way to the swarm step by step, and say which of the usual causes stops it; loads nothing"
    )
    port: int | None = option(None, "can others dial it?", "PORT", read=Number(int, 1, 65535, "a port"))
    json: bool = option(False, "print JSON")


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = (
        "Measure this machine, and with --swarm its way to a swarm: speed, memory, clock, distances, bandwidth, and "
        "whether others can dial it; with --wan each step of that way. Ends with 1 when something is wrong."
    )
    parser.declare(DoctorOptions)
    add_member_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look, print, advise."""
    config, options = member_config(arguments), build(DoctorOptions, vars(arguments))
    if options.no_speed and options.probe:
        raise UsageError("expected either --probe or --no-speed, found both: one measures, the other does not")
    from swarm.base.errors import SwarmError
    from swarm.terminal.doctor import Finding, look_at_kept, look_at_machine, look_at_speed, look_at_swarm
    from swarm.terminal.progress import reporter
    from swarm.terminal.surroundings import look_at_surroundings

    kept = look_at_kept(config, time.time())
    findings = [*look_at_machine(config, options.gpu), *look_at_surroundings(config), *kept]
    with reporter(json_lines=options.json, out=sys.stderr) as report:
        if options.probe or not (kept or options.no_speed or options.wan):
            try:
                findings += look_at_speed(config, options.model, options.gpu, report)
            except SwarmError as error:
                findings.append(Finding("speed", "wrong", "not measured", str(error)))
    if options.wan or config.invite is not None:
        from swarm.terminal.wan import look_at_relays, look_at_way_out

        try:
            findings += run_loop(look_at_way_out(config)) if options.wan else []
            if not any(finding.what == "cause" for finding in findings):
                findings += run_loop(look_at_swarm(config, options.port, look_at_relays if options.wan else None))
        except SwarmError as error:
            findings.append(Finding("swarm", "wrong", "not reached", str(error)))
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(f"{MARKS[finding.standing]}  {finding.what:16} {finding.found}")
            if finding.advice:
                print(f"    {finding.advice}")
    return 1 if any(finding.standing == "wrong" for finding in findings) else 0
