"""`swarm generate`: ask the swarm."""

from __future__ import annotations

import argparse
import json
import sys

from swarm.base.errors import UsageError
from swarm.cli import locally, through
from swarm.cli.ask import AWAITED, ConstraintOptions, GenerateConfig, ask, check
from swarm.cli.common import add_member_options, member_config, route_rules, say
from swarm.cli.early import check_swarm
from swarm.cli.loop import load, run_loop
from swarm.cli.parser import Parser
from swarm.client.config import RequesterConfig
from swarm.client.route_policy import RouteRules
from swarm.model.sampling import OWN, SAMPLING, Sampling
from swarm.run.api import RunRequest


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = (
        "Generate text on the swarm. The answer goes to stdout, everything else to stderr, and a signed receipt to the "
        "state folder."
    )
    add_run_options(parser)
    parser.declare(GenerateConfig)
    parser.declare(RouteRules)
    add_member_options(parser)
    through.add(parser)
    parser.set_defaults(run=run)


def add_run_options(parser: Parser) -> None:
    """Options of one run: length, sampling, speculation, receipt."""
    parser.sections("text", SAMPLING, "speculation", "the run", "receipt")
    parser.declare(RunRequest)
    parser.declare(ConstraintOptions)
    parser.declare(Sampling, absent=OWN)
    parser.declare(RequesterConfig, without=("draft", "log"))


def read_prompt(value: str) -> str:
    """The prompt given, or stdin. Raises UsageError when there is none."""
    if value != "-":
        return value
    if sys.stdin.isatty():
        raise UsageError('expected a prompt, found none; write swarm generate "your prompt", or pipe one in')
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"expected a prompt in UTF-8 on stdin, found other bytes: {error}") from error


def run(arguments: argparse.Namespace) -> int:
    """One run, streamed."""
    prompt = read_prompt(arguments.prompt)
    if not prompt.strip():
        raise UsageError("expected a prompt, found an empty one; give some text")
    if arguments.gateway not in (through.AUTO, through.NONE):
        return through.generate(arguments, prompt)
    if arguments.gateway_key is not None:
        raise UsageError("expected --gateway URL with --gateway-key, found the key alone")
    if arguments.gateway == through.AUTO and (code := locally.generate(arguments, prompt)) is not None:
        return code
    from swarm.terminal.progress import reporter

    config = GenerateConfig.from_arguments(arguments, member_config(arguments), prompt, route_rules(arguments))
    check(config)
    check_swarm(config.asked.member, quiet=config.json)
    if not config.json:
        say(AWAITED)
    load("swarm.client.client")
    with reporter(json_lines=False, out=sys.stderr) as report:
        result = run_loop(ask(config, report))
    if config.json:
        print(json.dumps(result.as_json(), ensure_ascii=False))
    if result.finish_reason == "swarm_incomplete":
        say("swarm: the run ended early: a stage was lost and no replacement came; what was committed is above")
        return 1
    if config.json and result.receipt_unwritten:
        say(f"swarm: {result.receipt_unwritten}")
    return 1 if result.receipt_unwritten else 0
