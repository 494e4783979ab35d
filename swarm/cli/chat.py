"""`swarm chat`: talk with the swarm."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace

from swarm.base.option import build, like, option
from swarm.cli.ask import AWAITED, GenerateConfig
from swarm.cli.common import add_member_options, member_config, route_rules, say, state_dir
from swarm.cli.early import check_draft, check_swarm
from swarm.cli.loop import load, run_loop
from swarm.cli.parser import Parser
from swarm.client.config import RequesterConfig
from swarm.client.route_policy import RouteRules
from swarm.model.sampling import OWN, Sampling, recommended, say_settings
from swarm.run.api import RunRequest

KEEP_S = 600.0
"""How long the stages are asked to hold what was said, so that an answer needs only the new words."""


@dataclass(frozen=True)
class ChatOptions:
    """A conversation, apart from its runs."""

    system: str | None = like(GenerateConfig, "system")
    no_history: bool = option(False, "do not keep the lines typed for the next chat", group="the run")


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = (
        "Talk with the swarm. /help lists the commands inside; Ctrl-C stops an answer, Ctrl-D ends. In a pipe, each "
        "line of stdin is a message and the answers alone go to stdout."
    )
    parser.declare(RunRequest, "max_tokens", "speculation", "draft", "patience_s", "receipt")
    parser.declare(ChatOptions)
    parser.declare(Sampling, "temperature", "top_p", "seed", absent=OWN)
    parser.declare(RequesterConfig, "draft_model", "draft_gpu", "keep_for_learning", "learning_bytes")
    parser.declare(RouteRules)
    add_member_options(parser)
    parser.set_defaults(run=run, max_tokens=1024)


def run(arguments: argparse.Namespace) -> int:
    """Talk until the end of input."""
    given = vars(arguments)
    check_draft(arguments.draft, arguments.draft_model, arguments.draft_gpu)
    request = build(RunRequest, given, prompt_ids=(0,), sampling=build(Sampling, given))
    asked = build(
        RequesterConfig,
        given,
        member=member_config(arguments),
        draft=request.draft,
        keep_s=KEEP_S,
        rules=route_rules(arguments),
    )
    check_swarm(asked.member)
    say(AWAITED)
    load("swarm.client.client")
    return run_loop(_chat(arguments, request, asked))


async def _chat(arguments: argparse.Namespace, request: RunRequest, asked: RequesterConfig) -> int:
    from swarm.client.client import Requester
    from swarm.terminal.chat import ChatConfig, chat
    from swarm.terminal.chat_screen import screen_and_reader
    from swarm.terminal.progress import reporter

    given, options = vars(arguments), build(ChatOptions, vars(arguments))
    # The bars end before the conversation begins: both would draw on one terminal.
    with reporter(json_lines=False, out=sys.stderr) as loading:
        connected = await Requester.connect(asked, loading)
    async with connected as requester:
        history = None if options.no_history else state_dir(arguments) / "chat_history"
        screen, read = screen_and_reader(history)
        own = recommended(request.sampling, requester.generation_defaults)
        if own != request.sampling and not any(name in given for name in OWN):
            request = replace(request, sampling=own)
            screen.say(f"sampling as the model's makers recommend: {say_settings(own)}")
        screen.say(f"{requester.manifest.model} on {len(requester.view().nodes)} nodes. /help lists commands.")
        await chat(requester, ChatConfig(request, options.system), screen, read)
    return 0
