"""`swarm join`: hold layers and serve them."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass

from swarm.base.config import JoinConfig, MemberConfig
from swarm.base.events import Report
from swarm.base.option import build, option
from swarm.cli.common import add_member_options, require_whole, say
from swarm.cli.early import check_node_invite, check_node_port, check_state
from swarm.cli.logs import LogConfig, logging_to
from swarm.cli.loop import run_loop
from swarm.cli.parser import Parser


@dataclass(frozen=True)
class JoinOptions:
    """What only the command line has."""

    cpu: bool = option(False, "compute on the CPU (default)", excludes="device", everyday=True)
    json: bool = option(False, "print events as JSON lines on stdout", everyday=True)


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = (
        "Take a block of layers and serve it until Ctrl-C. Without --swarm a swarm of the local network is joined: an "
        "open one at once, another when its owner confirms a code that both machines show. With nobody there a new one "
        "starts here, and the invite for others is printed."
    )
    parser.declare(JoinConfig)
    parser.declare(JoinOptions)
    parser.declare(LogConfig)
    add_member_options(parser)
    parser.set_defaults(run=run)


def join_config(arguments: argparse.Namespace) -> JoinConfig:
    """Configuration of a node from its options. Raises UsageError."""
    config = build(JoinConfig, vars(arguments), member=build(MemberConfig, vars(arguments)))  # contradictions first
    require_whole(config.member.invite)
    return config


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to stop."""
    import asyncio

    config = join_config(arguments)
    check_state(config.member.state)
    check_node_invite(config.member)
    check_node_port(config.listen)
    from swarm.base.owner import OwnerDesk
    from swarm.base.settled import settle
    from swarm.base.signals import on_signals
    from swarm.discovery.control import admit_command
    from swarm.node.node import Ready, serve_block
    from swarm.terminal.answers import answers_from
    from swarm.terminal.progress import reporter

    def ready(what: Ready) -> None:
        settle()
        if arguments.json:
            print(json.dumps({"event": "ready", **what.as_json()}), flush=True)
            return
        first, last = what.layers
        say(f"serving layers {first}-{last - 1} of {what.model} on {what.device} at {what.advertise}")
        say("invite others with:\n")
        print(f"  swarm join --swarm {what.invite}", flush=True)
        print(f'  swarm generate --swarm {what.invite} "your prompt"\n', flush=True)

    async def serve(report: Report) -> int:
        stop, desk = asyncio.Event(), OwnerDesk(report, admit_command(config.member.state))
        with on_signals(stop.set), answers_from(sys.stdin, desk, report):
            return await serve_block(config, ready, report, stop, desk)

    with (
        reporter(json_lines=arguments.json, out=sys.stderr) as report,
        logging_to(report, build(LogConfig, vars(arguments))),
    ):
        return run_loop(serve(report))
