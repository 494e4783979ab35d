"""`swarm admit`: the owner's word about a machine of the local network that asks to be let in."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass

from swarm.base.config import MemberConfig
from swarm.base.errors import UsageError
from swarm.base.option import build, option
from swarm.cli.common import say, state_dir
from swarm.cli.parser import Parser


def read_code(text: str) -> str:
    """The digits of a code, as people type them. Raises UsageError."""
    code = text.replace(" ", "").replace("-", "")
    if not (code.isascii() and code.isdecimal() and len(code) == 6):
        raise UsageError(f"expected a code of six digits, found {text!r}")
    return code


@dataclass(frozen=True)
class AdmitOptions:
    """Which code, and what is said about it."""

    code: str | None = option(
        None, "the code that both machines show", "CODE", name="code", read=read_code, optional=True
    )
    no: bool = option(False, "the codes differ, or nobody is to come in")
    json: bool = option(False, "print JSON")


def add(parser: Parser) -> None:
    """The options of the command."""
    parser.description = (
        "Confirm the code of a machine that asks to be let in, or that this machine's node shows while it asks "
        "elsewhere. Both machines must show the same code: another one means that somebody is between them. Without "
        "CODE it says what is asked, and on a terminal takes yes or no."
    )
    parser.declare(AdmitOptions)
    parser.declare(MemberConfig, "state")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Tell this machine's node. Raises UsageError."""
    import asyncio

    from swarm.discovery.control import answer_question, open_question

    options, state = build(AdmitOptions, vars(arguments)), state_dir(arguments)
    code, yes = options.code, not options.no
    if code is None:
        asked = asyncio.run(open_question(state))
        if options.json and not options.no:
            print(json.dumps({"question": None if asked is None else asdict(asked)}))
            return 0
        if asked is None:
            say("nobody asks to be let in")
            return 0
        code = asked.code
        if not options.no:
            say(asked.text)
            if not sys.stdin.isatty():
                return 0
            try:
                yes = input("yes or no: ").strip().lower() in ("yes", "y")
            except EOFError:  # nothing was said
                return 0
    asyncio.run(answer_question(state, code, yes))
    if options.json:
        print(json.dumps({"code": code, "admitted": yes}))
    else:
        say(f"code {code}: {'confirmed' if yes else 'refused'}")
    return 0
