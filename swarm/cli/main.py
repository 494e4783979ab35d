"""The command line's root: one parser, one way out."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from swarm import __version__
from swarm.base.errors import SwarmError
from swarm.base.files import DISK_ERRNOS
from swarm.cli.loop import INTERRUPTED, leave_now
from swarm.cli.parser import Parser

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
    words = sys.argv[1:] if argv is None else argv
    arguments = build_parser(next((word for word in words if not word.startswith("-")), "")).parse_args(words)
    try:
        code = int(arguments.run(arguments))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (as `| head` does): nothing more to say, and nothing to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SwarmError as error:
        return _told(error)
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        return _told(error)
    except BaseExceptionGroup as group:
        first = _first_of_ours(group)
        if first is None:
            raise
        return _told(first)
    if code == INTERRUPTED and argv is None:  # a process of our own, not a program that calls us
        leave_now(code)
    return code


def _told(error: SwarmError | OSError) -> int:
    """Say what went wrong in one line. Returns the exit code."""
    if isinstance(error, SwarmError):
        print(f"swarm: {error}", file=sys.stderr)
        return error.exit_code
    where = error.filename or "a file"
    print(f"swarm: cannot write {where}: {error.strerror}; free space, or choose another folder", file=sys.stderr)
    return 1


def _first_of_ours(group: BaseExceptionGroup[BaseException]) -> SwarmError | OSError | None:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            inner = _first_of_ours(error)
            if inner is not None:
                return inner
        elif isinstance(error, SwarmError) or (isinstance(error, OSError) and error.errno in DISK_ERRNOS):
            return error
    return None
