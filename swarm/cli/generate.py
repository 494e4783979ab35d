"""`swarm generate`: ask the swarm."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from swarm.base.errors import UsageError
from swarm.cli import through
from swarm.cli.common import (
    add_draft_model,
    add_keep_receipts,
    add_member_options,
    add_patience,
    add_route_options,
    add_speculation,
    add_wire,
    member_config,
    number,
    route_rules,
    say,
)
from swarm.cli.loop import run_loop


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "generate",
        help="ask the swarm; text streams to stdout",
        description="Generate text on the swarm. The answer goes to stdout, everything else to stderr, and a signed "
        "receipt to the state folder.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "prompt", nargs="?", default="-", metavar="PROMPT", help="the prompt, or - to read it from stdin (default)"
    )
    add_member_options(parser)
    add_run_options(parser)
    add_route_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", action="store_true", help="print one JSON object at the end instead of streaming text"
    )
    output.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colour tokens: drafted and accepted, or corrected (default: %(default)s)",
    )
    through.add(parser)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Options of one run: length, sampling, speculation, receipt."""
    text = parser.add_argument_group("text")
    text.add_argument(
        "--max-tokens",
        type=number(int, 1, 1_000_000, "a number of tokens"),
        default=256,
        metavar="N",
        help="exact, unless a stop or end token comes first (default: %(default)s)",
    )
    text.add_argument(
        "--raw", action="store_true", help="give the prompt to the model as it is, without the chat template"
    )
    text.add_argument("--system", metavar="TEXT", help="system message of the chat template")
    text.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="S",
        help="end where this text appears (may be given several times)",
    )
    text.add_argument(
        "--json-schema", type=Path, metavar="FILE", help="hold the answer to JSON that fits the schema in this file"
    )
    text.add_argument("--regex", metavar="R", help="hold the answer to a regular expression (Rust's syntax)")
    text.add_argument(
        "--grammar", type=Path, metavar="FILE", help="hold the answer to a grammar: llama.cpp's GBNF, or Lark"
    )
    text.add_argument("--ignore-eos", action="store_true", help="go on past end tokens (for benchmarks)")
    sampling = parser.add_argument_group("sampling (the output does not depend on speculation)")
    sampling.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: %(default)s)"
    )
    sampling.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="keep the likeliest tokens up to this mass, in (0, 1]"
    )
    sampling.add_argument("--top-k", type=int, default=0, metavar="K", help="keep the K likeliest tokens; 0 keeps all")
    sampling.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="drop tokens less likely than this share of the likeliest"
    )
    sampling.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1 makes seen tokens less likely"
    )
    sampling.add_argument(
        "--seed", type=int, default=0, metavar="S", help="same seed, same output (default: %(default)s)"
    )
    speculation = parser.add_argument_group("speculation")
    add_speculation(speculation)
    add_draft_model(
        speculation,
        "a small model, of any tokenizer: folder, short name or hub id (default: one beside the model, the one shipped "
        "for it, a smaller one here with its tokenizer, or the default model where it is here)",
    )
    run_group = parser.add_argument_group("the run")
    add_wire(run_group)
    run_group.add_argument(
        "--private",
        type=number(int, 0, 1000, "a number of layers"),
        default=0,
        metavar="K",
        help="run the first and the last K layers here: no node sees token ids",
    )
    add_patience(run_group)
    receipt = parser.add_argument_group("receipt")
    receipt.add_argument("--receipt", type=Path, metavar="PATH", help="where to write it (default: the state folder)")
    add_keep_receipts(receipt)
    receipt.add_argument("--no-receipt", action="store_true", help="leave none")
    receipt.add_argument(
        "--private-text", action="store_true", help="put a salted digest of the tokens into the receipt, not the tokens"
    )
    receipt.add_argument(
        "--witness",
        type=number(int, 0, 16, "a number of nodes"),
        default=None,
        metavar="N",
        help="nodes outside the ring that co-sign (default: 1 when there is one)",
    )


def read_prompt(value: str) -> str:
    """The prompt given, or stdin. Raises UsageError when there is none."""
    if value != "-":
        return value
    if sys.stdin.isatty():
        raise UsageError('expected a prompt, found none; write swarm generate "your prompt", or pipe one in')
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"expected a prompt in UTF-8 on stdin, found other bytes: {error}") from error


def run(arguments: argparse.Namespace) -> int:
    """One run, streamed."""
    prompt = read_prompt(arguments.prompt)
    if not prompt.strip():
        raise UsageError("expected a prompt, found an empty one; give some text")
    if arguments.gateway is not None:
        return through.generate(arguments, prompt)
    if arguments.gateway_key is not None:
        raise UsageError("expected --gateway URL with --gateway-key, found the key alone")
    from swarm.cli.ask import GenerateConfig, ask
    from swarm.terminal.progress import reporter

    config = GenerateConfig.from_arguments(arguments, member_config(arguments), prompt, route_rules(arguments))
    with reporter(json_lines=False, out=sys.stderr) as report:
        result = run_loop(ask(config, report))
    if arguments.json:
        print(json.dumps(result.as_json(), ensure_ascii=False))
    if result.finish_reason == "swarm_incomplete":
        say("swarm: the run ended early: a stage was lost and no replacement came; what was committed is above")
        return 1
    return 0
