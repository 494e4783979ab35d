"""The command line's root: one parser, one way out."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Sequence
from importlib import import_module

from swarm import __version__
from swarm.cli.fault import ending_of, keep_story
from swarm.cli.loop import INTERRUPTED, Interrupts, leave_now
from swarm.cli.parser import Parser
from swarm.cli.streams import end_output, prepare

EXAMPLES = """\
first steps:
  swarm demo                             three nodes and an answer, here
  swarm join --gpu 0                     serve on GPU 0; prints an invite
  swarm join --swarm INVITE              a second machine takes the rest
  swarm generate --swarm INVITE "Hello"  ask it; leaves a signed receipt
  swarm verify                           what that receipt proves
"""


COMMANDS = {
    "join": "hold layers of a model and serve them",
    "generate": "ask the swarm; text streams to stdout",
    "chat": "a conversation in the terminal",
    "serve": "OpenAI-compatible API and dashboard",
    "status": "who is there and what they hold",
    "top": "watch a swarm work",
    "demo": "a whole swarm on this machine, and an answer",
    "verify": "what a receipt proves",
    "show": "draw a run over time, from its receipt",
    "model": "pull, list, show or quantize models",
    "invite": "let others in",
    "admit": "confirm the code of a machine that asks to be let in",
    "revoke": "end an invite",
    "probe": "this machine as an entry of a fleet file",
    "plan": "dry run over a described fleet",
    "doctor": "what this machine brings, what is wrong, what to do",
    "upgrade-check": "ask whether there is a newer version",
    "draft": "make a drafter",
    "bench": "measure speed",
    "completion": "completion for your shell",
}
"""What each is for. It is the module of this name (`_` for `-`) in this package, imported when it is asked for."""


def build_parser(only: str | None = None) -> Parser:
    """The whole command line; docs/cli.md is made from it. `only`: the one command whose options are wanted."""
    parser = Parser(
        prog="swarm",
        description="Run language models that no single machine holds, over the open internet.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"wanswarm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, help in COMMANDS.items():
        command = commands.add_parser(name, help=help)
        if only is None or only == name:
            import_module(f"swarm.cli.{name.replace('-', '_')}").add(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 failed, 2 misuse; `swarm verify` has more."""
    # Collecting what goes with the process anyway takes a second where torch is loaded.
    atexit.register(gc.freeze)
    own_process, interrupts = argv is None, Interrupts()  # not a program that calls us
    if own_process:
        prepare()
        interrupts.listen()
    words = sys.argv[1:] if argv is None else argv
    try:
        code = _run(words)
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        code = _told(KeyboardInterrupt() if interrupts.came else error)
    if code == INTERRUPTED and own_process:
        leave_now(code)
    return code


def _run(words: Sequence[str]) -> int:
    try:
        parser = build_parser(next((word for word in words if not word.startswith("-")), ""))
        arguments = parser.parse_args(words)
        code = int(arguments.run(arguments))
        if code == INTERRUPTED:  # heard by the command itself
            raise KeyboardInterrupt
    finally:
        end_output()
    return code


def _told(error: BaseException) -> int:
    """Say what went wrong in one line. Returns the exit code."""
    ending = ending_of(error)
    line = ending.line
    if ending.fault:
        kept = keep_story(error)
        line = f"{line}; please report it, with {kept}" if kept else f"{line}; please report it"
    if line is not None:
        print(f"swarm: {line}", file=sys.stderr)
    return ending.code
