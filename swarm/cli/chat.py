"""`swarm chat`: talk with the swarm."""

from __future__ import annotations

import argparse
import sys

from swarm.cli.common import (
    add_draft_model,
    add_member_options,
    add_patience,
    add_route_options,
    add_speculation,
    member_config,
    number,
    route_rules,
    state_dir,
)
from swarm.cli.loop import run_loop

KEEP_S = 600.0
"""How long the stages are asked to hold what was said, so that an answer needs only the new words."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The parser of the command."""
    parser = commands.add_parser(
        "chat",
        help="a conversation in the terminal",
        description="Talk with the swarm. /help lists the commands inside; Ctrl-C stops an answer, Ctrl-D ends. "
        "In a pipe, each line of stdin is a message and the answers alone go to stdout.",
    )
    parser.set_defaults(run=run)
    add_member_options(parser)
    add_route_options(parser)
    text = parser.add_argument_group("text")
    text.add_argument("--system", metavar="TEXT", help="system message")
    text.add_argument(
        "--max-tokens",
        type=number(int, 1, 1_000_000, "a number of tokens"),
        default=1024,
        metavar="N",
        help="of one answer, at most (default: %(default)s)",
    )
    text.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: %(default)s)")
    text.add_argument("--top-p", type=float, default=1.0, metavar="P", help="keep the likeliest tokens up to this mass")
    text.add_argument("--seed", type=int, default=0, metavar="S", help="of the first answer (default: %(default)s)")
    runs = parser.add_argument_group("runs")
    add_speculation(runs)
    add_draft_model(runs, "a small model, of any tokenizer")
    add_patience(runs)
    runs.add_argument("--no-receipt", action="store_true", help="leave no receipts")
    runs.add_argument("--no-history", action="store_true", help="do not keep the lines typed for the next chat")


def run(arguments: argparse.Namespace) -> int:
    """Talk until the end of input."""
    return run_loop(_chat(arguments))


async def _chat(arguments: argparse.Namespace) -> int:
    from swarm.client.client import Requester, RequesterConfig
    from swarm.model.sampler import Sampling
    from swarm.run.api import Draft, RunRequest
    from swarm.terminal.chat import ChatConfig, chat
    from swarm.terminal.chat_screen import screen_and_reader
    from swarm.terminal.progress import reporter

    draft: Draft = "none" if arguments.speculation == "plain" else arguments.draft
    request = RunRequest(
        prompt_ids=(0,),
        max_tokens=arguments.max_tokens,
        sampling=Sampling(temperature=arguments.temperature, top_p=arguments.top_p, seed=arguments.seed),
        speculation=arguments.speculation,
        draft=draft,
        patience_s=arguments.patience,
        receipt=not arguments.no_receipt,
    )
    asked = RequesterConfig(
        member_config(arguments),
        draft=draft,
        draft_model=arguments.draft_model,
        draft_gpu=arguments.draft_gpu,
        keep_s=KEEP_S,
        rules=route_rules(arguments),
    )
    # The bars end before the conversation begins: both would draw on one terminal.
    with reporter(json_lines=False, out=sys.stderr) as loading:
        connected = await Requester.connect(asked, loading)
    async with connected as requester:
        history = None if arguments.no_history else state_dir(arguments) / "chat_history"
        screen, read = screen_and_reader(history)
        screen.say(f"{requester.manifest.model} on {len(requester.view()['nodes'])} nodes. /help lists commands.")
        await chat(requester, ChatConfig(request, arguments.system), screen, read)
    return 0
